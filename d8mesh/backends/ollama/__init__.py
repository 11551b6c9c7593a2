"""A local Ollama: where it is, which models chat there, and chats with them.

Only the configured addresses are spoken to, without redirects, proxies or keys from the
environment, and everything that comes back is bounded: a service that misbehaves fails a task,
never the worker. Uses none of Ollama's cloud.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from d8mesh.backends.backend import Availability, ChatRun, ModelInfo, PullProgress
from d8mesh.backends.ollama import models
from d8mesh.backends.ollama.bodies import (
    Defaults,
    Loading,
    load_body,
    max_output_tokens,
    question_of,
)
from d8mesh.backends.ollama.catalogue import Catalogue, Installed, ask_json
from d8mesh.backends.ollama.chat import AnswerLines
from d8mesh.backends.ollama.choice import chosen_calls
from d8mesh.backends.ollama.connection import OllamaRequest, asking
from d8mesh.backends.ollama.descriptions import description_in
from d8mesh.backends.ollama.embed import embeddings
from d8mesh.backends.ollama.faults import SERVICE, is_not_found
from d8mesh.backends.ollama.selection import MAX_NAMED, chosen, named, placed, steady, wished
from d8mesh.backends.reach import leaves_lan, outside_error
from d8mesh.backends.streaming import completion, said, shown
from d8mesh.config import Config
from d8mesh.core.protocol.chat import (
    COMPLETION,
    EMBEDDING,
    LOAD_OPTIONS,
    ChatRequest,
    Completion,
    EmbeddingRequest,
    Embeddings,
    JsonObject,
)
from d8mesh.core.protocol.messages import Placement
from d8mesh.core.protocol.model_names import matching
from d8mesh.errors import (
    BackendAnswerError,
    BackendError,
    BackendUnavailableError,
    InvalidTaskError,
)

#: Where an Ollama is looked for when no address is set: D8's own port, then Ollama's.
DEFAULT_URLS: Final = ("http://localhost:7100", "http://localhost:11434")
#: A probe answers within this many seconds, or the service counts as down.
PROBE_S: Final = 3.0
#: What was offered is asked again after this many seconds.
PROBE_AGE_S: Final = 30.0
#: What a model is asked to see whether it generates, or makes vectors.
CHECK_TEXT: Final = "1"
#: The last line of an answer to a prompt may hold the context: some 8 bytes for each of a million
#: tokens.
MAX_LAST_LINE_BYTES: Final = 8 * 1024 * 1024
#: Pieces that may come beyond the bound of tokens: a token may be told in two.
SPARE_PIECES: Final = 64


A = TypeVar("A")


def backend_of(config: Config) -> OllamaBackend:
    """Return the Ollama of the settings; it need not be there."""
    return OllamaBackend(
        config.ollama_url or DEFAULT_URLS,
        default_model=config.ollama_model,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        may_leave_lan=config.cloud != "never",
    )


class OllamaBackend:
    """Ollama at one address, or at the first of several that answers.

    Args:
        base_url: ``http://HOST:PORT``, as `Config.ollama_url`; or several, in order.
        default_model: runs what asks for a model that is not offered; if it is not
            offered itself, see `selection.steady`.
        max_tokens: of an answer, when the task says nothing.
        temperature: when the task says nothing.
        may_leave_lan: an address outside the LAN may be asked; it counts as cloud.

    Thread: any; each chat has a connection of its own.
    """

    kind: Final = "ollama"

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        default_model: str | None = None,
        max_tokens: int = 2000,
        temperature: float = 0.7,
        may_leave_lan: bool = True,
    ) -> None:
        self.urls = (base_url,) if isinstance(base_url, str) else tuple(base_url)
        #: the address in use; one that answers is kept until it does not
        self.base_url = self.urls[0]
        self._default_model = default_model
        self._defaults = Defaults(temperature=temperature, max_tokens=max_tokens)
        #: the load options that the last placement gave, by model
        self._options: dict[str, dict[str, object]] = {}
        self._seen: tuple[float, Availability] | None = None
        #: what was seen the last time that there was something, as long as nothing fails
        self._known: Availability | None = None
        self._catalogue = Catalogue()
        #: by address the model that runs what wishes for none
        self._default_at: dict[str, str] = {}
        self._lock = threading.Lock()
        self._may_leave_lan, self._is_outside = may_leave_lan, False

    @property
    def is_cloud(self) -> bool:
        """Whether what it is asked leaves the LAN."""
        return self._is_outside

    @property
    def url(self) -> str:
        """The address in use."""
        return self.base_url

    def probe(self) -> Availability:
        """Ask Ollama what it offers; never raises, takes a few `PROBE_S` at most."""
        with self._lock:
            return self._probe()

    def chat(self, request: ChatRequest, run: ChatRun) -> Completion:
        """Return Ollama's answer; see `LlmService.chat` and `streaming.completion`.

        Always streamed, so that ending early closes the connection, on which Ollama stops.
        """
        if request.more.get("tools"):  # a call comes whole: nothing is heard while it is made
            run = replace(run, token_gap_s=max(run.token_gap_s, run.first_token_s))
        most = 2 * max_output_tokens(request, self._defaults) + SPARE_PIECES
        calls = chosen_calls(request.more)
        asked = request if calls.more == request.more else replace(request, more=calls.more)

        def ask(run: ChatRun) -> Completion:
            url, loading = self._chat_target(asked, run.placement)
            path, body = question_of(asked, loading, self._defaults)
            sent = OllamaRequest(url=url, path=path, body=body, line_bytes=MAX_LAST_LINE_BYTES)
            reader = asking(sent, calls.reading(AnswerLines().piece_of))
            with self._doubted():
                done = completion(reader, loading.model, run, max_pieces=most)
            return replace(done, ignored=calls.ignored) if calls.ignored else done

        return self._asked(ask, run)

    def embed(self, request: EmbeddingRequest, run: ChatRun) -> Embeddings:
        """Return Ollama's vectors; see `LlmService.embed`."""

        def ask(run: ChatRun) -> Embeddings:
            model = self._embedder(request.model, run.placement)
            loading = self._loading(model, run.placement)
            with self._doubted():
                return embeddings(self.base_url, request, loading, run)

        return self._asked(ask, run)

    def _asked(self, ask: Callable[[ChatRun], A], run: ChatRun) -> A:
        """Return what `ask` does; a model that is not found though listed is asked once more."""
        started = time.monotonic()
        self._refuse_outside()
        try:
            return ask(run)
        except BackendError as error:
            if not is_not_found(error):
                raise
        return ask(replace(run, deadline_s=run.deadline_s - (time.monotonic() - started)))

    def _refuse_outside(self) -> None:
        """See that nothing goes where a name has come to lead out of the LAN since the probe."""
        if (not self._is_outside or not self._may_leave_lan) and leaves_lan(self.base_url):
            raise outside_error(SERVICE, self.base_url)

    @contextlib.contextmanager
    def _doubted(self) -> Iterator[None]:
        """Forget what was there if the service fails: it may have gone, or the model with it."""
        try:
            yield
        except BackendError:
            self._seen = self._known = None
            raise

    def check(self, model: ModelInfo, *, within_s: float) -> None:
        """Make `model` say one token, or make one vector if that is what it is capable of."""
        loading = self._loading(model.name, None, model)
        within = ChatRun(is_cancelled=lambda: False, deadline_s=within_s, first_token_s=within_s)
        if EMBEDDING in model.can and COMPLETION not in model.can:
            request = EmbeddingRequest(texts=(CHECK_TEXT,), model=model.name)
            embeddings(self.base_url, request, loading, within)
            return
        asked = ChatRequest(messages=({"role": "user", "content": CHECK_TEXT},), max_tokens=1)
        path, body = question_of(asked, loading, self._defaults)
        question = OllamaRequest(url=self.base_url, path=path, body=body)
        done = completion(
            asking(question, AnswerLines().piece_of),
            model.name,
            within,
            max_pieces=SPARE_PIECES,
        )
        if not (done.text or done.thinking or done.ending.usage.completion_tokens):
            raise BackendAnswerError(f"{SERVICE}: {model.name} was asked for one token, made none")

    def load(
        self, model: str, options: JsonObject, *, within_s: float, keep_alive: object = None
    ) -> None:
        """Bring `model` into memory; in the form that it has if it is there."""
        placement = Placement(service="", model=model, options=dict(options)) if options else None
        is_embedder = matching(model, self._seen_embedders()) is not None
        body = load_body(self._loading(model, placement), keep_alive)
        models.load(self.base_url, body, is_embedder=is_embedder, within_s=within_s)

    def unload(self, model: str, *, within_s: float) -> None:
        """Let go of a model; see `LetsGo.unload`."""
        is_embedder = matching(model, self._seen_embedders()) is not None
        models.unload(self.base_url, model, is_embedder=is_embedder, within_s=within_s)

    def describe(self, model: str) -> JsonObject:
        """Return what Ollama tells of a model; see `Tells.describe`."""
        asked = {"model": model}
        told = ask_json(self.base_url, "/api/show", within_s=PROBE_S, body=asked)
        if not isinstance(told, dict):
            raise BackendAnswerError(f"{SERVICE} did not describe {model!r}")
        return description_in(told)

    def pull(
        self,
        name: str,
        on_progress: Callable[[PullProgress], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        """Install a model; see `Managed.pull`."""
        models.pull(self.base_url, name, on_progress, is_cancelled)
        self._seen = None

    def remove(self, name: str) -> None:
        """Delete a model; see `Managed.remove`."""
        models.remove(self.base_url, name)
        self._seen = None

    # --- which model, and how it is loaded

    def _chat_target(
        self, request: ChatRequest, placement: Placement | None
    ) -> tuple[str, Loading]:
        """Return the address and the model for a request."""
        if placement is not None:  # it was offered a moment ago: a slow probe is not waited for
            offer = self._known or self._offer()
            model = placed(placement.model, offer)
        else:
            offer = self._offer()
            if request.is_model_strict and wished(request, offer) is None:
                offer = self._offer(is_fresh=True)  # it may have been pulled just now
            model = chosen(request, offer)
        return offer.url, self._loading(model, placement)

    def _embedder(self, name: str, placement: Placement | None) -> str:
        if placement is not None:
            return placed(placement.model, self._seen_there(), is_embed=True)
        model = matching(name, self._seen_embedders())
        if model is None:  # it may have been pulled just now
            self.probe()
            model = matching(name, self._seen_embedders())
        if model is None:
            offered = named(self._seen_embedders()) or "none"
            raise InvalidTaskError(
                f"model: {name!r} makes no embeddings here; those that do: {offered}"
            )
        return model

    def _seen_embedders(self) -> tuple[str, ...]:
        return self._seen_there().embedders

    def _seen_there(self) -> Availability:
        offer = self._known or self.probe()
        if not offer.url:
            raise BackendUnavailableError(offer.reason)
        return offer

    def _loading(
        self, model: str, placement: Placement | None, info: ModelInfo | None = None
    ) -> Loading:
        """Return how `model` is to be loaded: the context that it has is kept.

        Without a placement it is as the last one said; without `info` as it was seen last.
        """
        if placement is None:
            options = self._options.get(model, {})
        else:
            options = {k: v for k, v in placement.options.items() if k in LOAD_OPTIONS}
            self._options[model] = options
        seen = self._seen[1] if self._seen is not None else self._known
        if info is None and seen is not None:
            info = seen.details.get(model)
        if info is not None and info.is_loaded and info.context_length:
            options = {**options, "num_ctx": info.context_length}
        return Loading(
            model=model,
            options=options,
            waiting=0 if placement is None else placement.waiting,
            kept_s=0.0 if info is None else info.kept_until - time.monotonic(),
        )

    # --- what is there

    def _offer(self, *, is_fresh: bool = False) -> Availability:
        """Return what is there, asked for now or not long ago."""
        offer = None if is_fresh else self._recent()
        if offer is None:
            asked_at = time.monotonic()
            with self._lock:
                seen = self._seen
                is_told = seen is not None and seen[0] >= asked_at  # who held the lock has asked
                if seen is not None and is_told and not (is_fresh and seen[1].is_up):
                    offer = seen[1]
                else:
                    offer = self._probe()
        if not offer.is_up:
            raise BackendUnavailableError(offer.reason)
        return offer

    def _recent(self) -> Availability | None:
        """Return what was there not long ago, without waiting for a probe that hangs."""
        seen = self._seen
        if seen is None or not seen[1].is_up or time.monotonic() - seen[0] >= PROBE_AGE_S:
            return None
        return seen[1]

    def _probe(self) -> Availability:
        found: Availability | None = None
        spare: Availability | None = None  #: answers, but has none to chat with
        problems: list[str] = []
        silent: dict[str, str] = {}
        for url in sorted(self.urls, key=lambda url: url != self.base_url):
            self._is_outside = leaves_lan(url)
            if self._is_outside and not self._may_leave_lan:
                problems.append(str(outside_error(SERVICE, url)))
                continue
            try:
                seen = self._judged(url, self._catalogue.read(url, within_s=PROBE_S))
            except BackendError as error:
                problems.append(str(error))
                continue
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                silent[url] = _why_silent(error)  # UnicodeError: a name that no host can have
                continue
            if seen.is_up:
                found = seen
                break
            problems.append(seen.reason)
            if spare is None or (seen.embedders and not spare.embedders):
                spare = seen
        if found is None:
            problems += [] if problems else [_silence({url: silent[url] for url in self.urls})]
            found = replace(spare or Availability(is_up=False), reason="; ".join(problems))
        self.base_url = found.url or self.urls[0]
        self._seen = (time.monotonic(), found)
        if found.url:
            self._known = found
        return found

    def _judged(self, url: str, installed: Installed) -> Availability:
        models, unfit = installed.models, installed.unfit
        if not models:
            others = "; ".join(f"{name} {why}" for name, why in list(unfit.items())[:MAX_NAMED])
            reason = (
                f"Ollama at {url} has no models to chat with: pull one with `models pull NAME`, or "
                "there with `ollama pull NAME`"
            )
            reason += f" ({others})" if others else ""
            return Availability(
                is_up=False,
                url=url,
                embedders=installed.embedders,
                unfit=unfit,
                details=installed.details,
                version=installed.version,
                reason=reason,
            )
        wanted = matching(self._default_model or "", models)
        before = self._default_at.get(url, "")
        default = wanted or steady(models, installed.details, before)
        self._default_at[url] = default
        return Availability(
            is_up=True,
            url=url,
            models=models,
            embedders=installed.embedders,
            default=default,
            loaded=installed.loaded,
            unfit=unfit,
            capabilities=installed.capabilities,
            details=installed.details,
            version=installed.version,
            warning=""
            if wanted or not self._default_model
            else self._missing(default, models, unfit),
        )

    def _missing(self, default: str, models: Sequence[str], unfit: Mapping[str, str]) -> str:
        name = str(self._default_model)
        found = matching(name, tuple(unfit))
        what = "is not installed" if found is None else unfit[found]
        hint = f" To install it: ollama pull {name}" if found is None else ""
        return (
            f"DEEPSEEK_MODEL={name} {what}; {default} answers in its place "
            f"(installed: {named(models)}).{hint}"
        )


def _silence(places: Mapping[str, str]) -> str:
    """Say that no Ollama answers at `places`, each with its reason."""
    whys = list(places.values())
    if len(set(whys)) == 1:
        told = f"{' or '.join(places)} ({whys[0]})"
    else:
        told = " or ".join(f"{url} ({why})" for url, why in places.items())
    return (
        f"Ollama does not answer at {told}: start it there (ollama serve), or correct its address "
        "(DEEPSEEK_BASE_URL, D8_OLLAMA_HOSTS)"
    )


def _why_silent(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TimeoutError) and error.errno is None and str(error):
        return shown(str(error))
    return said(error)
