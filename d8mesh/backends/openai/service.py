"""One OpenAI-compatible service as a backend: which model runs, and what its refusals mean."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from d8mesh.backends.accounts.account import FOR_GOOD_S, Account, Booking
from d8mesh.backends.accounts.bounds import bounds_of
from d8mesh.backends.backend import Availability, ChatRun, ModelInfo
from d8mesh.backends.openai import listing
from d8mesh.backends.openai.answers import Assembly
from d8mesh.backends.openai.bodies import AskedBody, chat_body, embedding_body, refused_fields
from d8mesh.backends.openai.endpoint import Endpoint, Hearing, Whole
from d8mesh.backends.openai.faults import Period, ServiceFault, bounds_in, fault_of, used_up_in
from d8mesh.backends.openai.providers import Provider
from d8mesh.backends.openai.vectors import vectors_bytes, vectors_in
from d8mesh.backends.reach import leaves_lan
from d8mesh.backends.streaming import completion, parts
from d8mesh.config import Config
from d8mesh.core.protocol.chat import (
    EMBEDDING,
    ChatRequest,
    Completion,
    EmbeddingRequest,
    Embeddings,
    JsonObject,
)
from d8mesh.core.protocol.messages import Budget
from d8mesh.core.protocol.model_names import matching
from d8mesh.errors import (
    BackendBusyError,
    BackendError,
    BackendLimitError,
    BackendTooLargeError,
    BackendUnavailableError,
    D8Error,
    InvalidTaskError,
)

#: A list of models is there within so many seconds, or the service counts as down.
LIST_S: Final = 5.0
#: `MAX_LISTED` models, and what else stands in a long list.
MAX_MODEL_LIST_BYTES: Final = 4 * 1024 * 1024
#: In the cloud it is asked for again after so long; on the LAN at each probe.
LIST_AGE_S: Final = 600.0
FAILED_LIST_AGE_S: Final = 30.0
#: A chat whose fields are refused by name is sent again without them, so often at most.
MAX_REFUSALS: Final = 4
#: Requests that were too large and may come back.
MAX_OVERSIZED: Final = 1000
#: What a question costs that only sees whether a model works.
CHECK_TOKENS: Final = 16
#: Model names in one sentence.
MAX_NAMES_TOLD: Final = 8
#: A cloud answers several at once; how many an account may ask is bounded by its budget.
CLOUD_SLOTS: Final = 4
#: Added to what a service asks to wait: its clock and ours differ.
WAIT_MARGIN_S: Final = 0.5

_Made = TypeVar("_Made", Completion, Embeddings)


class OpenAIBackend:
    """A service with OpenAI's API.

    Args:
        provider: what is peculiar to it.
        url: with its path, such as ``https://HOST/v1``.
        key: None: the service needs none.
        config: how long and how warm an answer is when the task says nothing.
        account: what the key allows; None: there is no bound.
        default_model: runs what asks for a model that is not offered.

    Thread: any; each request has a connection of its own.
    """

    def __init__(
        self,
        provider: Provider,
        url: str,
        *,
        key: str | None,
        config: Config,
        account: Account | None = None,
        default_model: str | None = None,
    ) -> None:
        self._provider, self._endpoint = provider, Endpoint(provider.title, url, key)
        self._config, self._account, self._default_model = config, account, default_model
        self._seen: tuple[float, Availability] | None = None
        self._ids: Mapping[str, str] = {}
        #: fields that the service refused by name, by model
        self._refused: dict[str, frozenset[str]] = {}
        #: models that are not part of what the account may use, and why
        self._gone: dict[str, str] = {}
        #: hashes of requests that were given back as too large
        self._oversized: deque[bytes] = deque(maxlen=MAX_OVERSIZED)
        self._lock = threading.Lock()
        self._is_outside = False
        self._endpoint.stays_in_lan = not provider.is_cloud

    @property
    def kind(self) -> str:
        """Its row in `BACKENDS`."""
        return self._provider.kind

    @property
    def is_cloud(self) -> bool:
        """Whether what it is asked leaves the LAN."""
        return self._provider.is_cloud or self._is_outside

    @property
    def url(self) -> str:
        """Where it is, with its path."""
        return self._endpoint.url

    @property
    def service_id(self) -> str:
        """The same for all who use this key; "" without an account."""
        return "" if self._account is None else self._account.service_id

    @property
    def slots_hint(self) -> int:
        """How many requests at once a model gets before that is measured."""
        return 1 if self._account is None else CLOUD_SLOTS

    def budget(self, model: str) -> Budget | None:
        """Return what the account allows and what was used of it; None: there is no bound."""
        return None if self._account is None else self._account.budget(model)

    def keep_in(self, folder: Path) -> None:
        """Keep what is used of the account in this worker's own folder; take up what is there."""
        if self._account is not None:
            self._account.keep_in(folder / f"{self._account.service_id}.json")

    # --- what it offers

    def probe(self) -> Availability:
        """Return what the service offers; in the cloud it is not asked each time. Never raises."""
        with self._lock:
            seen, now = self._seen, time.monotonic()
            if seen is None or now - seen[0] >= self._list_age_s(seen[1]):
                seen = self._seen = (now, self._listed())
        found = self._without_gone(seen[1])
        notice = self._account.notice if self._account is not None else ""
        return replace(found, warning="; ".join(filter(None, (found.warning, notice))))

    def _list_age_s(self, seen: Availability) -> float:
        if not self._provider.is_cloud:
            return 0.0
        return LIST_AGE_S if seen.is_up else FAILED_LIST_AGE_S

    def _find_reach(self) -> None:
        """See whether an address that was set is one of the LAN; names may come to mean others."""
        if not self._provider.is_cloud:
            self._is_outside = leaves_lan(self.url)
            self._endpoint.stays_in_lan = not self._is_outside or self._config.cloud == "never"

    def _listed(self) -> Availability:
        self._find_reach()
        try:
            found = self._read_list()
        except D8Error as error:
            return Availability(is_up=False, url=self.url, reason=str(error))
        self._ids = found.ids
        if not found.chats:
            return Availability(
                is_up=False,
                url=self.url,
                embedders=found.embedders,
                details=found.details,
                unfit=found.unfit,
                reason=f"{self._provider.title} at {self.url} has no models to chat with",
            )
        default = matching(self._default_model or "", found.chats)
        return Availability(
            is_up=True,
            url=self.url,
            models=found.chats,
            embedders=found.embedders,
            default=default or self._first(found.chats),
            loaded=tuple(name for name, info in found.details.items() if info.is_loaded),
            details=found.details,
            unfit=found.unfit,
            warning="" if default or not self._default_model else self._missing(found.chats),
        )

    def _read_list(self) -> listing.ModelList:
        answer = self._get("/models")
        found = listing.model_list(self._provider, answer, {})
        if found.has_load_states:
            root = self.url.removesuffix("/v1")
            try:
                states = listing.load_states(self._get(root + listing.LOAD_STATES))
            except D8Error:
                return found
            found = listing.model_list(self._provider, answer, states)
        return found

    def _get(self, path: str) -> Any:
        run = ChatRun(is_cancelled=lambda: False, deadline_s=LIST_S, first_token_s=LIST_S)
        hearing = Hearing(failed=lambda fault: self._error("", fault))
        reader = self._endpoint.ask(
            path, None, piece_of=Whole, hearing=hearing, max_bytes=MAX_MODEL_LIST_BYTES
        )
        answer = next(parts(reader, run)).answer
        fault = fault_of(answer)
        if fault is not None and "data" not in answer:
            raise self._error("", fault)
        return answer

    def _first(self, models: tuple[str, ...]) -> str:
        """Return what runs where nobody names a model: of what an account allows most a day."""
        if not self._provider.is_cloud:
            return models[0]
        return max(
            models,
            key=lambda name: bounds_of(self.kind, name, given={}, learnt={}).day_requests,
        )

    def _missing(self, models: tuple[str, ...]) -> str:
        variable = self._provider.key_variable.replace("API_KEY", "MODEL")
        return (
            f"{variable}={self._default_model} is not there; {self._first(models)} answers in its "
            f"place ({self._provider.title} has {_named(models)})"
        )

    def _without_gone(self, seen: Availability) -> Availability:
        gone = {name: why for name, why in self._gone.items() if name in seen.details}
        if not gone:
            return seen
        models = tuple(name for name in seen.models if name not in gone)
        return replace(
            seen,
            is_up=bool(models),
            models=models,
            embedders=tuple(name for name in seen.embedders if name not in gone),
            default=seen.default if seen.default in models else next(iter(models), ""),
            unfit={**seen.unfit, **gone},
            reason=seen.reason or ("" if models else f"{self._provider.title}: {_first_of(gone)}"),
        )

    # --- what it is asked

    def chat(self, request: ChatRequest, run: ChatRun) -> Completion:
        """Return the answer; see `Backend.chat` and `streaming.completion`."""
        model = self._chosen(request, run)
        body = chat_body(
            self._provider,
            request,
            model=self._ids.get(model, model),
            temperature=self._config.temperature,
            max_tokens=self._config.max_tokens,
        )

        def ask(body: AskedBody, heard: Hearing) -> tuple[Completion, int]:
            assembly = Assembly(self._provider, heard.failed)
            reader = self._endpoint.ask(
                body.path, body.fields, piece_of=assembly.piece_of, hearing=heard
            )
            done = completion(reader, model, run)
            return replace(done, ignored=body.ignored), done.ending.usage.total

        return self._booked(model, body, ask)

    def embed(self, request: EmbeddingRequest, run: ChatRun) -> Embeddings:
        """Return the vectors; see `Backend.embed`."""
        seen = self._offer()
        placed = run.placement.model if run.placement is not None else ""
        model = matching(placed or request.model, (*seen.embedders, *self._lan_models(seen)))
        if model is None:
            told = _named(seen.embedders) or "none"
            raise InvalidTaskError(
                f"model: {request.model!r} makes no embeddings here; those that do: {told}"
            )
        body = embedding_body(self._provider, request, model=self._ids.get(model, model))
        count = len(request.texts)

        def ask(body: AskedBody, heard: Hearing) -> tuple[Embeddings, int]:
            reader = self._endpoint.ask(
                body.path,
                body.fields,
                piece_of=Whole,
                hearing=heard,
                max_bytes=vectors_bytes(count),
            )
            answer = next(parts(reader, run)).answer
            fault = fault_of(answer)
            if fault is not None:
                raise heard.failed(fault)
            vectors, usage = vectors_in(self._provider.title, answer, count)
            made = Embeddings(vectors=vectors, model=model, usage=usage, ignored=body.ignored)
            return made, usage.total

        return self._booked(model, body, ask)

    def check(self, model: ModelInfo, *, within_s: float) -> None:
        """See `Backend.check`; it counts as a request of the account."""
        run = ChatRun(is_cancelled=lambda: False, deadline_s=within_s, first_token_s=within_s)
        if EMBEDDING in model.can:
            self.embed(EmbeddingRequest(texts=("one",), model=model.name), run)
            return
        asked = ({"role": "user", "content": "Say one word."},)
        self.chat(
            ChatRequest(
                messages=asked, model=model.name, is_model_strict=True, max_tokens=CHECK_TOKENS
            ),
            run,
        )

    def load(
        self, model: str, options: JsonObject, *, within_s: float, keep_alive: object = None
    ) -> None:
        """See `Backend.load`: a server loads what it is asked; in the cloud all of them are."""
        if not self._provider.is_cloud:
            seen = self._offer()
            self.check(seen.details.get(model, ModelInfo(name=model)), within_s=within_s)

    def _offer(self) -> Availability:
        seen = self._seen
        is_known = seen is not None and seen[1].is_up
        offer = self._without_gone(seen[1]) if seen is not None and is_known else self.probe()
        if not offer.is_up and not offer.embedders:
            raise BackendUnavailableError(offer.reason)
        return offer

    def _lan_models(self, seen: Availability) -> tuple[str, ...]:
        """Return the models that may make vectors though their names do not say so."""
        return () if self._provider.is_cloud else seen.models

    def _chosen(self, request: ChatRequest, run: ChatRun) -> str:
        offer = self._offer()
        if run.placement is not None:
            if (placed := matching(run.placement.model, offer.models)) is None:
                self._forget()
                why = self._gone.get(run.placement.model, "it is gone from the list")
                raise BackendUnavailableError(
                    f"{self._provider.title} has no model {run.placement.model!r} any more ({why})"
                )
            return placed
        found = matching(request.model or "", offer.models)
        if found is None and request.model and request.is_model_strict:
            raise InvalidTaskError(
                f"model_strict: {self._provider.title} has no model {request.model!r}, but "
                f"{_named(offer.models)}"
            )
        if not offer.models:
            raise BackendUnavailableError(offer.reason)
        return found or offer.default

    def _forget(self) -> None:
        """Read the list of models again the next time: one of them has gone, or the key has.

        Not under the lock: who holds it may be waiting for what calls this.
        """
        self._seen = None

    def _booked(
        self, model: str, body: AskedBody, ask: Callable[[AskedBody, Hearing], tuple[_Made, int]]
    ) -> _Made:
        """Ask, within what the account allows; without the fields that the service refuses."""
        body = body.without(self._refused.get(model, frozenset()))
        for _ in range(MAX_REFUSALS):
            faults: list[ServiceFault] = []
            booking: Booking | None = None
            try:
                if self._account is not None:
                    booking = self._account.begin(model, body.tokens)
                answer, tokens = ask(body, self._hearing(model, faults, booking))
            except BaseException as error:
                self._settle(booking, 0 if faults else None)
                is_unsent = self._account is not None and booking is None
                if isinstance(error, BackendTooLargeError) and (faults or is_unsent):
                    raise self._too_large(body, str(error)) from error
                if not isinstance(error, BackendError):
                    raise
                names = refused_fields(faults[0], body) if faults else frozenset()
                if not names:
                    raise
                self._refused[model] = self._refused.get(model, frozenset()) | names
                body = body.without(names)
            else:
                self._settle(booking, tokens or None)
                return answer
        raise BackendError(f"{self._provider.title} refuses one field after another")

    def _too_large(self, body: AskedBody, why: str) -> BackendError:
        """Return the refusal of what never fits: at first others may take it at no cost.

        If it comes back there are none, and the attempt has failed.
        """
        asked = hashlib.sha256(repr(body.fields).encode("utf-8", "replace")).digest()
        with self._lock:
            is_known = asked in self._oversized
            self._oversized.append(asked)
        return BackendTooLargeError(why) if is_known else BackendLimitError(why)

    def _settle(self, booking: Booking | None, tokens: int | None) -> None:
        """Correct what a request took; None: nobody knows."""
        if booking is not None and self._account is not None:
            self._account.settle(booking, booking.tokens if tokens is None else tokens)

    def _hearing(self, model: str, faults: list[ServiceFault], booking: Booking | None) -> Hearing:
        def failed(fault: ServiceFault) -> D8Error:
            faults.append(fault)
            return self._error(model, fault)

        def headers(headers: Mapping[str, str]) -> None:
            if booking is not None and self._account is not None:
                self._account.arrived(booking)
                self._learn(self._account, model, headers)

        return Hearing(failed=failed, headers=headers)

    def _learn(self, account: Account, model: str, headers: Mapping[str, str]) -> None:
        account.learn(model, bounds_in(headers))
        if (used_up := used_up_in(headers)) is not None:
            account.block(model, *used_up)

    # --- what its refusals mean

    def _error(self, model: str, fault: ServiceFault) -> D8Error:
        title, text = self._provider.title, self._endpoint.redacted(fault.text)
        if self._account is not None and model:
            self._account.learn(model, fault.bounds)
        if fault.is_key_refused:
            self._forget()
            variable = self._provider.key_variable
            return BackendUnavailableError(f"{title} refuses the key: check {variable} ({text})")
        if fault.is_too_large:
            return BackendTooLargeError(
                f"this request can never fit into what {title} allows of {model}: lower "
                f"max_tokens, or ask another model ({text})"
            )
        if fault.is_too_long:
            return InvalidTaskError(
                f"longer than the context of the model: {title} refuses ({text})"
            )
        if fault.is_limit or fault.is_overload:
            return self._not_now(model, fault, text)
        if fault.is_gone:
            self._forget()
            return BackendUnavailableError(f"{title} has no model {model!r} any more ({text})")
        status = f"HTTP {fault.status}: " if fault.status else ""
        return BackendError(f"{title} failed ({status}{text})")

    def _not_now(self, model: str, fault: ServiceFault, text: str) -> D8Error:
        title, account = self._provider.title, self._account
        if account is None or not model:
            return BackendBusyError(f"{title} is busy ({text})")
        wait_s = None if fault.wait_s is None else fault.wait_s + WAIT_MARGIN_S
        if not fault.is_limit:
            account.block_shortly(model, f"{title} is overloaded: {text}", for_s=wait_s)
        elif fault.period is Period.FOR_GOOD:
            self._gone[model] = f"is not part of what this account may use ({text})"
            account.block(model, FOR_GOOD_S, self._gone[model])
        elif fault.period is Period.DAY and (
            wait_s is None or not self._provider.has_true_day_waits
        ):
            account.block_today(model, f"the day's quota is used up: {text}")
        elif wait_s is None:
            account.block_shortly(model, text)
        else:
            account.block(model, wait_s, text)
        return BackendLimitError(f"{title} allows no more of {model} now ({text})")


def _named(models: tuple[str, ...]) -> str:
    more = f" and {len(models) - MAX_NAMES_TOLD} more" if len(models) > MAX_NAMES_TOLD else ""
    return ", ".join(models[:MAX_NAMES_TOLD]) + more


def _first_of(gone: Mapping[str, str]) -> str:
    return next(f"{name} {why}" for name, why in gone.items())
