"""A local Ollama: where it is, which models chat there, and chats through the ``ollama`` package.

The package is imported when the first chat begins (it costs 20 MB and a fifth of a
second); probing is plain HTTP. Only the configured addresses are spoken to, without
redirects, proxies or keys from the environment, and everything that comes back is
bounded: a service that misbehaves fails a task, never the worker. Pulls no models, and uses
none of Ollama's cloud.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from d8mesh.backends import Availability, ChatRequest, Completion
from d8mesh.backends.ollama.catalogue import (
    IS_CLOUD,
    IS_EMBEDDING,
    Catalogue,
    Installed,
    is_cloud_name,
    is_embedding_name,
)
from d8mesh.backends.ollama.stream import LOOK_S, ChatStream, Part, said
from d8mesh.core.protocol.model_names import plain_name
from d8mesh.errors import (
    BackendAnswerError,
    BackendDeadlineError,
    BackendError,
    BackendStalledError,
    BackendTooLargeError,
    BackendUnavailableError,
    InvalidTaskError,
    TaskCancelledError,
)

#: Where an Ollama is looked for when no address is set: D8's own port, then Ollama's.
DEFAULT_URLS: Final = ("http://localhost:7100", "http://localhost:11434")
#: A probe answers within this many seconds, or the service counts as down.
PROBE_S: Final = 3.0
#: What was offered is asked again after this many seconds.
PROBE_AGE_S: Final = 30.0
#: Seconds without a token in the middle of an answer: far slower than any model that fits.
STALL_S: Final = 60.0
#: Before the first token a large model may have to come from a slow disk.
FIRST_TEXT_S: Final = 300.0
#: An answer, thoughts and all: the longest contexts give a few megabytes, a result must hold it.
MAX_TEXT_BYTES: Final = 8 * 1024 * 1024
#: What a model cannot do without a capability.
_LACKS: Final = {
    "tools": "cannot call tools",
    "vision": "cannot see pictures and would pass over them in silence",
}
#: Model names in one sentence.
MAX_NAMED: Final = 8


class OllamaBackend:
    """Ollama at one address, or at the first of several that answers.

    Args:
        base_url: ``http://HOST:PORT``, as `Config.ollama_url`; or several, in order.
        default_model: runs what asks for a model that is not offered; if it is not
            offered itself, the first one is.
        max_tokens: of an answer, when the task says nothing.
        temperature: when the task says nothing.

    Thread: any; each chat has a connection and a reading thread of its own.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        default_model: str | None = None,
        max_tokens: int = 2000,
        temperature: float = 0.7,
    ) -> None:
        self.urls = (base_url,) if isinstance(base_url, str) else tuple(base_url)
        #: the address in use; one that answers is kept until it does not
        self.base_url = self.urls[0]
        self._default_model = default_model
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._seen: tuple[float, Availability] | None = None
        self._catalogue = Catalogue()
        self._lock = threading.Lock()

    def probe(self) -> Availability:
        """Ask Ollama what it offers; never raises, takes a few `PROBE_S` at most."""
        with self._lock:
            return self._probe()

    def choose(
        self,
        requested: str | None,
        *,
        is_strict: bool = False,
        needs: frozenset[str] = frozenset(),
    ) -> str:
        """Return the model that runs what asks for `requested` and `needs` these capabilities.

        Raises:
            BackendUnavailableError: Ollama is down or has no models.
            BackendError: none of its models has the capabilities.
            InvalidTaskError: as `chat`.
        """
        return self._chosen(requested, is_strict=is_strict, needs=needs)[1]

    def chat(
        self,
        request: ChatRequest,
        *,
        on_text: Callable[[str], None],
        is_cancelled: Callable[[], bool],
        deadline_s: float,
        stall_s: float | None = None,
    ) -> Completion:
        """Return Ollama's answer; see `d8mesh.backends.Backend.chat`.

        Always streamed, so that ending early closes the connection, on which Ollama stops.
        Without `stall_s` it is `STALL_S`, and `FIRST_TEXT_S` before the first text.

        Raises:
            InvalidTaskError: the model is a must and not offered here (not installed, one that
                cannot chat, or one of Ollama's cloud), or lacks a capability that is needed.
            TaskCancelledError: `is_cancelled` said so.
            BackendUnavailableError: Ollama is down, busy (503) or has no models.
            BackendStalledError: no text came for too long.
            BackendDeadlineError: `deadline_s` are over.
            BackendAnswerError: a redirect, a compressed or broken answer.
            BackendTooLargeError: more than `MAX_TEXT_BYTES` of text, or noise beside it.
            BackendError: Ollama reports a failure.
        """
        url, model = self._chosen(
            request.model, is_strict=request.is_model_strict, needs=request.needs
        )
        temperature, tokens = request.temperature, request.max_tokens
        stream = ChatStream(
            url,
            request.messages,
            model=model,
            temperature=self._temperature if temperature is None else temperature,
            max_tokens=self._max_tokens if tokens is None else tokens,
            more={**request.more, "options": request.options},
        )
        answer = _Answer(model)
        watch = _Watch(deadline_s, stall_s)
        try:
            while not answer.is_complete:
                if is_cancelled():
                    raise TaskCancelledError
                watch.check_deadline(time.monotonic())
                part = stream.next(LOOK_S)
                text = "" if part is None else answer.add(part)
                if text:
                    on_text(text)
                if part is not None and part.is_sign_of_life:
                    # After the listener has had it: the time that it takes is no silence.
                    watch.hear(time.monotonic())
                else:
                    watch.check_silence(time.monotonic())
        except BackendError:
            self._seen = None  # it may have gone, or the model with it
            raise
        finally:
            stream.close()
        return answer.completion()

    # ------------------------------------------------------------------- private

    def _chosen(
        self, requested: str | None, *, is_strict: bool, needs: frozenset[str]
    ) -> tuple[str, str]:
        """Return the address and the model for what asks for `requested`."""
        offer = self._offer()
        found = _match(requested or "", offer.models)
        if found is None and requested and is_strict:
            offer = self._offer(is_fresh=True)  # it may have been pulled just now
            found = _match(requested, offer.models)
            if found is None:
                _refuse_unfit(requested, offer)
                raise InvalidTaskError(
                    f"model_strict: the model {requested!r} is not installed here, and no "
                    f"worker of the mesh offers it; installed: {_named(offer.models)}"
                )
        if found is not None:
            if lacks := _lacks(found, needs, offer):
                raise InvalidTaskError(f"model: {found!r} {lacks}")
            return offer.url, found
        able = [name for name in (offer.default, *offer.models) if not _lacks(name, needs, offer)]
        if not able:
            lacks = _lacks(offer.default, needs, offer)
            raise BackendError(f"none of the models here will do: {offer.default!r} {lacks}")
        return offer.url, able[0]

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
        problems: list[str] = []
        silent: dict[str, str] = {}
        for url in sorted(self.urls, key=lambda url: url != self.base_url):
            try:
                seen = self._judged(url, self._catalogue.read(url, within_s=PROBE_S))
            except BackendAnswerError as error:
                problems.append(str(error))
                continue
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                silent[url] = _why_silent(error)  # UnicodeError: a name that no host can have
                continue
            if seen.is_up:
                found = seen
                break
            problems.append(seen.reason)
        if found is None:
            problems += [] if problems else [_silence({url: silent[url] for url in self.urls})]
            found = Availability(is_up=False, reason="; ".join(problems))
            self.base_url = self.urls[0]
        else:
            self.base_url = found.url
        self._seen = (time.monotonic(), found)
        return found

    def _judged(self, url: str, installed: Installed) -> Availability:
        models, unfit = installed.models, installed.unfit
        if not models:
            others = "; ".join(f"{name} {why}" for name, why in list(unfit.items())[:MAX_NAMED])
            reason = f"Ollama at {url} has no models to chat with: pull one with `ollama pull NAME`"
            reason += f" ({others})" if others else ""
            return Availability(is_up=False, url=url, unfit=unfit, reason=reason)
        default = _match(self._default_model or "", models)
        return Availability(
            is_up=True,
            url=url,
            models=models,
            default=default or models[0],
            loaded=installed.loaded,
            unfit=unfit,
            capabilities=installed.capabilities,
            warning="" if default or not self._default_model else self._missing(models, unfit),
        )

    def _missing(self, models: Sequence[str], unfit: Mapping[str, str]) -> str:
        """Say that the default model of the settings is not there."""
        name = str(self._default_model)
        found = _match(name, tuple(unfit))
        what = "is not installed" if found is None else unfit[found]
        hint = f" To install it: ollama pull {name}" if found is None else ""
        return (
            f"DEEPSEEK_MODEL={name} {what}; {models[0]} answers in its place "
            f"(installed: {_named(models)}).{hint}"
        )


def _match(wished: str, models: Sequence[str]) -> str | None:
    """Return which of `models` is the one that is wished for."""
    if not wished or wished in models:
        return wished or None
    plain = plain_name(wished)
    return next((name for name in models if plain_name(name) == plain), None)


def _lacks(name: str, needs: frozenset[str], offer: Availability) -> str:
    """Say what a model cannot do of what is needed; "" if it can, or does not tell."""
    has = offer.capabilities.get(name)
    missing = sorted(needs - has) if has else []
    return _LACKS[missing[0]] if missing else ""


def _refuse_unfit(requested: str, offer: Availability) -> None:
    """Say of a model that is a must why it can never answer here."""
    found = _match(requested, tuple(offer.unfit))
    why = "" if found is None else offer.unfit[found]
    if not why and is_cloud_name(requested):
        why = IS_CLOUD
    if not why and is_embedding_name(requested):
        why = IS_EMBEDDING
    if why:
        raise InvalidTaskError(
            f"model_strict: the model {requested!r} {why}; "
            f"models to chat with: {_named(offer.models)}"
        )


def _named(models: Sequence[str]) -> str:
    more = f" and {len(models) - MAX_NAMED} more" if len(models) > MAX_NAMED else ""
    return ", ".join(models[:MAX_NAMED]) + more


def _silence(places: Mapping[str, str]) -> str:
    """Say that no Ollama answers at `places`, each with its reason."""
    whys = list(places.values())
    if len(set(whys)) == 1:
        told = f"{' or '.join(places)} ({whys[0]})"
    else:
        told = " or ".join(f"{url} ({why})" for url, why in places.items())
    return f"Ollama does not answer at {told}: start it (ollama serve), or set DEEPSEEK_BASE_URL"


def _why_silent(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return said(error)


class _Watch:
    """The two clocks of an answer: its deadline, and the silence since the last text."""

    def __init__(self, deadline_s: float, stall_s: float | None) -> None:
        self._started = self._heard = time.monotonic()
        self._deadline_s = deadline_s
        self._later_s = STALL_S if stall_s is None else stall_s
        self._patience_s = FIRST_TEXT_S if stall_s is None else stall_s

    def hear(self, now: float) -> None:
        self._heard, self._patience_s = now, self._later_s

    def check_deadline(self, now: float) -> None:
        if now - self._started >= self._deadline_s:
            raise BackendDeadlineError(
                f"the answer was not complete after {max(self._deadline_s, 0):.0f} s: "
                "raise deadline_s or TASK_TIMEOUT, or ask for fewer max_tokens"
            )

    def check_silence(self, now: float) -> None:
        if now - self._heard >= self._patience_s:
            raise BackendStalledError(f"Ollama sent no text for {self._patience_s:g} s")


class _Answer:
    """The pieces of an answer so far."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[Mapping[str, Any]] = []
        self._logprobs: list[Any] = []
        self._bytes = 0
        self._last: Part | None = None

    @property
    def is_complete(self) -> bool:
        return self._last is not None

    def add(self, part: Part) -> str:
        self._bytes += len(part.text.encode("utf-8")) + len(part.thinking.encode("utf-8"))
        if part.tool_calls or part.logprobs:
            self._bytes += len(json.dumps([*part.tool_calls, *part.logprobs]))
        if self._bytes > MAX_TEXT_BYTES:
            raise BackendTooLargeError(f"Ollama sent more than {MAX_TEXT_BYTES} bytes of text")
        self._texts.append(part.text)
        self._thoughts.append(part.thinking)
        self._calls += part.tool_calls
        self._logprobs += part.logprobs
        if part.is_last:
            self._last = part
        return part.text

    def completion(self) -> Completion:
        assert self._last is not None
        return Completion(
            text="".join(self._texts),
            model=self._model,
            thinking="".join(self._thoughts),
            tool_calls=tuple(self._calls),
            logprobs=tuple(self._logprobs),
            tokens_used=self._last.tokens_used,
            load_s=self._last.load_s,
            is_cut=self._last.is_cut,
        )
