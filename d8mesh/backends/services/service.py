"""One LLM service that a worker reaches: what it offers, how it does, and the way of a request.

Every request is measured. A model that fails is paused at once, and asked a small question again
and again until it answers. Deliberately not here: which service answers a request, and who is told
of all this.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, cast, runtime_checkable

from d8mesh.backends.answer_clocks import ANSWER_CLOCKS
from d8mesh.backends.backend import (
    FIRST_TOKEN_S,
    TOKEN_GAP_S,
    Availability,
    Backend,
    ChatRun,
    LetsGo,
    Managed,
    ModelInfo,
    Tells,
)
from d8mesh.backends.services.descriptions import Descriptions
from d8mesh.backends.services.meters import MAX_PAUSED_CHARS, Meters
from d8mesh.backends.services.whereabouts import Whereabouts, whereabouts
from d8mesh.core.protocol.chat import (
    BYTES_PER_TOKEN,
    ChatRequest,
    Completion,
    EmbeddingRequest,
    Embeddings,
    JsonObject,
    Origin,
    Piece,
)
from d8mesh.core.protocol.messages import Budget, OfferedModel, OfferedService, Placement
from d8mesh.core.protocol.model_names import matching
from d8mesh.errors import BackendError, InvalidTaskError

#: One token of a model that is in memory; one that is not gets what any first token gets, and
#: the time that loading is known to take.
CHECK_S: Final = 60.0
#: A model that is in memory and has a free slot is stuck if its first token takes so many times as
#: long as its earlier ones; never before so many seconds, for others may have had it unloaded.
STUCK_TIMES: Final = 10.0
LEAST_FIRST_TOKEN_S: Final = 30.0
#: As much of a date, and of the time that a model is kept, as travels.
MAX_MODIFIED_CHARS: Final = 64
MOST_KEPT_S: Final = 1e9
#: Figures of a model that change within so long are told together: each short answer changes them.
FIGURES_APART_S: Final = 0.05
#: That a name stands for another address now is noticed after so long.
PLACE_AGE_S: Final = 60.0


@runtime_checkable
class HasAccount(Protocol):
    """A backend that an account stands behind."""

    #: names the account, the same for all workers that use it; "" for none: its place does
    service_id: str
    #: requests at once that a model gets before it was measured
    slots_hint: int

    def budget(self, model: str) -> Budget | None:
        """Return what the account allows now; None: there is no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestClocks:
    """How long every request may be silent."""

    #: seconds until the first token
    first_token_s: float = FIRST_TOKEN_S
    #: seconds between two
    token_gap_s: float = TOKEN_GAP_S


class Service:
    """One LLM service.

    Args:
        backend: what speaks with it.
        on_change: told whenever something of it has changed, in the middle of requests too: of
            which model, None for all of it.
        on_described: told the service's id, a model, and what is said of it at length.
        beside: does something that may take minutes; by itself that is done at once.

    Thread: `look` one at a time; the rest any.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        clocks: RequestClocks | None = None,
        on_change: Callable[[Service, str | None], None] = lambda service, model: None,
        on_described: Callable[[str, str, JsonObject], None] = lambda service, model, told: None,
        beside: Callable[[Callable[[], None]], None] = lambda do: do(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend = backend
        self._account = backend if isinstance(backend, HasAccount) else None
        self.seen = Availability(is_up=False, reason="not asked yet")
        self._installed: tuple[Availability, dict[str, ModelInfo]] = (self.seen, {})
        #: False until it was looked at
        self.is_asked = False
        #: somebody should look at it now
        self.needs_look = threading.Event()
        #: held while one of its models is pulled or removed
        self.changing = threading.Lock()
        #: the model that was pulled or removed last, or is now
        self.changed = ""
        self._clocks, self._clock = clocks or RequestClocks(), clock
        self._on_change, self._beside = on_change, beside
        self._meters = Meters(self._changed, clock=clock, on_figures=self._changed_soon)
        #: models whose figures are told soon, and when each was told last
        self._unsaid: set[str] = set()
        self._said_at: dict[str, float] = {}
        self._saying = threading.Lock()
        self._descriptions = Descriptions(on_described)
        self._place = Whereabouts("", "", is_local=False)
        self._placed_url, self._placed_at = "", float("-inf")
        #: models that have answered since the last look began, and when: they are in memory
        self._answered: dict[str, float] = {}

    # ------------------------------------------------------------------ what it is

    @property
    def id(self) -> str:
        """What it is called in the mesh; known after the first look."""
        own = "" if self._account is None else self._account.service_id
        return own or self._place.id

    @property
    def machine(self) -> str:
        """Where it runs, for people."""
        return self._place.machine

    @property
    def is_local(self) -> bool:
        """True if it runs on this machine."""
        return self._place.is_local

    @property
    def managed(self) -> Managed | None:
        """What installs and removes its models; None: that cannot be done from here."""
        return cast(Managed, self.backend) if hasattr(self.backend, "pull") else None

    @property
    def is_useful(self) -> bool:
        """True if it answers anything now."""
        return self.seen.is_up or bool(self.seen.embedders)

    @property
    def installed(self) -> Mapping[str, ModelInfo]:
        """The models that it offers, by name."""
        seen, (of, known) = self.seen, self._installed
        if of is not seen:
            known = {
                name: seen.details.get(name) or ModelInfo(name=name)
                for name in (*seen.models, *seen.embedders)
            }
            self._installed = (seen, known)
        return known

    def has(self, model: str) -> str | None:
        """Return its own name for `model`; None: it does not have it."""
        return matching(model, self.installed)

    # ------------------------------------------------------------------ in sight

    def look(self) -> bool:
        """Ask what it offers, and have paused models asked whether they answer again.

        Returns:
            Whether what people should know of it has changed.
        """
        self.needs_look.clear()
        began = self._clock()
        before, seen = self.seen, self.backend.probe()
        if self.is_useful and not seen.url and max(self._answered.values(), default=began) > began:
            seen = before  # too busy to list its models: it answers
        self._find_place(seen)
        self.seen, self.is_asked = seen, True
        for name, at in list(self._answered.items()):
            if at <= began:
                del self._answered[name]
        if self.is_useful:  # else it may come back, and what was measured of it still holds
            anew = [
                name
                for name, info in self.installed.items()
                if name in before.details and before.details[name].digest != info.digest
            ]
            hint = 1 if self._account is None else self._account.slots_hint
            self._meters.keep(self.installed, anew=anew, slots=max(1, hint))
            if not before.is_up:
                self._meters.came_back()
            self._changed()
            for name in self._meters.due():
                self._meters.probe_begins(name)
                self._beside(partial(self._check, name))
        self._changed()
        self._describe()
        return before != seen

    def next_look_s(self, every_s: float) -> float:
        """Return in how many seconds it should be looked at, though nothing happens."""
        return self._meters.next_change_s(every_s) if self.is_useful else every_s

    def _find_place(self, seen: Availability) -> None:
        url, now = seen.url or self.backend.url, self._clock()
        if url != self._placed_url or now - self._placed_at >= PLACE_AGE_S:
            self._place = whereabouts(url, self.backend.kind)
            self._placed_url, self._placed_at = url, now

    def _check(self, name: str) -> None:
        info = self.installed.get(name) or ModelInfo(name=name)
        failed: BackendError | None = None
        within_s = self._clocks.first_token_s
        if self._is_loaded(info):
            within_s = min(CHECK_S, within_s)
        try:
            self.backend.check(info, within_s=within_s + 2 * self._meters.load_s(name))
        except BackendError as error:
            failed = error
        except InvalidTaskError:
            pass  # it is the question that it refuses: requests will show whether it answers
        except Exception as error:  # whatever a backend raises: another try will come
            failed = BackendError(f"{type(error).__name__}: {error}")
        self._meters.probed(name, failed)
        self.needs_look.set()  # the next question may be due sooner than the next look

    def _changed(self, model: str | None = None) -> None:
        self._on_change(self, model)

    def _changed_soon(self, model: str) -> None:
        """Tell of a model's figures: at once if that was not done just now, else with others."""
        now = self._clock()
        with self._saying:
            is_due = now - self._said_at.get(model, -math.inf) >= FIGURES_APART_S
            if is_due:
                self._said_at[model] = now
            is_first = not is_due and not self._unsaid
            if not is_due:
                self._unsaid.add(model)
        if is_due:
            self._changed(model)
        elif is_first:
            try:
                ANSWER_CLOCKS.watch(self._say_unsaid)
            except RuntimeError:  # no thread can do it later
                self._say_unsaid(now)

    def _say_unsaid(self, now: float) -> None:
        ANSWER_CLOCKS.forget(self._say_unsaid)
        with self._saying:
            unsaid, self._unsaid = self._unsaid, set()
        for model in unsaid:
            self._changed(model)

    def _describe(self) -> None:
        """Have told at length, once for each content, what it has."""
        news = self._descriptions.news(self.installed.values())
        if news and isinstance(self.backend, Tells):
            self._beside(partial(self._descriptions.tell, self.backend, self.id, news))

    # ------------------------------------------------------------------ requests

    def chat(self, request: ChatRequest, run: ChatRun) -> Completion:
        """Return the answer of this service; see `Backend.chat`."""
        model, tokens = self._model(run, request.models), _tokens_of(request)
        has_tools = bool(request.more.get("tools"))
        first_token_s = self._first_token_s(model, tokens, has_tools=has_tools)
        measured = self._meters.measured(model, prompt_tokens=tokens)

        def hear(piece: Piece) -> None:
            if piece.is_sign_of_life:
                is_first = model not in self._answered
                self._answered[model] = self._clock()
                if is_first:
                    self._changed(model)  # it is in memory now
                measured.hear()
            run.on_piece(piece)

        origin = self._origin()

        def start(model: str, _: Origin | None) -> None:
            run.on_start(model, origin)

        placed = replace(
            run,
            first_token_s=first_token_s,
            token_gap_s=self._clocks.token_gap_s,
            on_piece=hear,
            on_start=start,
        )
        with self._looked_at_after_failure(), measured:
            done = self.backend.chat(request, placed)
            measured.answered(done.ending.usage, done.ending.timing)
        return replace(done, origin=origin)

    def embed(self, request: EmbeddingRequest, run: ChatRun) -> Embeddings:
        """Return the vectors of this service; see `Backend.embed`."""
        model = self._model(run, (request.model,))
        clocks = self._clocks
        placed = replace(run, first_token_s=clocks.first_token_s, token_gap_s=clocks.token_gap_s)
        tokens = sum(map(len, request.texts)) // BYTES_PER_TOKEN
        measured = self._meters.measured(model, prompt_tokens=tokens, is_streamed=False)
        with self._looked_at_after_failure(), measured:
            made = self.backend.embed(request, placed)
            self._answered[model] = self._clock()
            measured.answered(made.usage, made.timing)
        return replace(made, origin=self._origin())

    def warm(self, placement: Placement, *, keep_alive: object = None) -> None:
        """Load a model: tasks for it will come.

        Raises:
            BackendError: it does not come into memory.
        """
        began, within_s = self._clock(), self._clocks.first_token_s
        model, options = placement.model, placement.options
        with self._looked_at_after_failure():
            try:
                self.backend.load(model, options, within_s=within_s, keep_alive=keep_alive)
            except BackendError as error:
                self._meters.failed(placement.model, error)
                raise
            self._meters.loaded(placement.model, self._clock() - began)
            self._answered[placement.model] = self._clock()
            self._changed(placement.model)
        self.needs_look.set()  # to tell that it is loaded

    def unload(self, model: str) -> None:
        """Have a model leave the memory, once nobody uses it.

        Raises:
            InvalidTaskError: the service cannot be told to.
            BackendError: that cannot be done now.
        """
        if not isinstance(self.backend, LetsGo):
            raise InvalidTaskError(f"{self.backend.kind}: it cannot be told to let go of a model")
        with self._looked_at_after_failure():
            self.backend.unload(model, within_s=self._clocks.first_token_s)
        self._answered.pop(model, None)
        self.needs_look.set()  # to tell that it is gone

    @contextlib.contextmanager
    def _looked_at_after_failure(self) -> Iterator[None]:
        """Have the service looked at soon after an error of its own: it may be down."""
        try:
            yield
        except BackendError:
            self.needs_look.set()
            raise

    def _model(self, run: ChatRun, wished: Sequence[str]) -> str:
        if run.placement and run.placement.model:
            return run.placement.model
        there = (own for name in wished if (own := self.has(name)) is not None)
        return next(there, "") or self.seen.default

    def _first_token_s(self, model: str, prompt_tokens: int, *, has_tools: bool) -> float:
        """Return how long the first token may take: of a loaded model that is known, not long.

        A call of a tool comes whole.
        """
        most_s = self._clocks.first_token_s
        if has_tools:
            return most_s
        expected_s = self._meters.expected_first_s(model, prompt_tokens)
        if not expected_s or not self.is_loaded(model):
            return most_s
        stuck_s = STUCK_TIMES * expected_s + 2 * self._meters.load_s(model)
        return min(most_s, max(LEAST_FIRST_TOKEN_S, stuck_s))

    def _origin(self) -> Origin:
        kind, is_cloud = self.backend.kind, self.backend.is_cloud
        return Origin(service=self.id, machine=self.machine, backend=kind, is_cloud=is_cloud)

    # ------------------------------------------------------------------ what is told

    def is_loaded(self, model: str) -> bool:
        """Return whether a model of this name, which is its own, is in memory."""
        info = self.installed.get(model)
        return info is not None and self._is_loaded(info)

    def load_of(self, model: str) -> tuple[bool, float]:
        """Return whether `model` is paused, and how full its slots are."""
        figures = self._meters.figures(model)
        return bool(figures.paused), figures.in_flight / max(figures.slots, 1)

    def paused(self, model: str) -> str:
        """Return why `model` gets nothing now; "" if it may be asked."""
        return self._meters.figures(model).paused

    def offered(self) -> OfferedService:
        """Return what the mesh is told of it."""
        seen, backend = self.seen, self.backend
        is_empty = self.managed is not None and bool(seen.url)  # it answers: models can be pulled
        why = "" if self.is_useful or is_empty else seen.reason
        return OfferedService(
            id=self.id or f"{backend.kind}:{backend.url}",
            kind=backend.kind,
            machine=self.machine,
            url=seen.url or backend.url,
            is_cloud=backend.is_cloud,
            slots=0,
            default=seen.default,
            models=[] if why else [self._offered(info) for info in self.installed.values()],
            why=why[:MAX_PAUSED_CHARS],
        )

    def offered_model(self, name: str) -> OfferedModel | None:
        """Return what the mesh is told of one model; None: it is not there."""
        info = self.installed.get(name)
        return None if info is None else self._offered(info)

    def _offered(self, info: ModelInfo) -> OfferedModel:
        figures = self._meters.figures(info.name)
        return OfferedModel(
            name=info.name,
            digest=info.digest,
            can=sorted(info.can or self.seen.capabilities.get(info.name, frozenset())),
            size_bytes=info.size_bytes,
            is_loaded=self._is_loaded(info),
            slots=figures.slots,
            load_s=figures.load_s,
            prompt_tokens_per_s=figures.prompt_tokens_per_s,
            output_tokens_per_s=figures.output_tokens_per_s,
            requests=figures.requests,
            prompt_tokens=figures.prompt_tokens,
            output_tokens=figures.output_tokens,
            paused=figures.paused,
            budget=None if self._account is None else self._account.budget(info.name),
            modified_at=info.changed_at[:MAX_MODIFIED_CHARS],
            details=dict(info.details),
            context_tokens=info.context_length or info.most_context,
            vram_bytes=info.vram_bytes,
            expires_s=_left_s(info.kept_until, self._clock()) if info.is_loaded else 0.0,
        )

    def _is_loaded(self, info: ModelInfo) -> bool:
        return info.is_loaded or info.name in self.seen.loaded or info.name in self._answered

    def report(self) -> dict[str, object]:
        """Return it for the status page."""
        told = self.offered()
        return {
            "id": told.id,
            "kind": told.kind,
            "machine": told.machine,
            "url": told.url or None,
            "is_up": not told.why,
            "why": self.seen.reason or self.seen.warning or None,
            "default_model": told.default or None,
            "models": [
                {
                    "name": model.name,
                    "is_loaded": model.is_loaded,
                    "slots": model.slots,
                    "running": self._meters.figures(model.name).in_flight,
                    "output_tokens_per_s": round(model.output_tokens_per_s, 1),
                    "requests": model.requests,
                    "paused": model.paused or None,
                }
                for model in told.models
            ],
        }


def _left_s(kept_until: float, now: float) -> float:
    """Return how long a model stays in memory, as `OfferedModel` tells it."""
    if kept_until == math.inf:
        return -1.0
    return min(max(kept_until - now, 0.0), MOST_KEPT_S)


def _tokens_of(request: ChatRequest) -> int:
    """Return about how many tokens the question has."""
    size = sum(len(str(message.get("content") or "")) for message in request.conversation)
    return size // BYTES_PER_TOKEN
