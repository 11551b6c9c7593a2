"""A local Ollama: what it offers, and chats through the ``ollama`` package.

The package is imported when the first chat begins (it costs 20 MB and a fifth of a
second); probing is plain HTTP. Only the configured address is spoken to, without
redirects, proxies or keys from the environment, and everything that comes back is
bounded: a service that misbehaves fails a task, never the worker. Pulls no models.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from d8mesh.backends import Availability, ChatRequest, Completion
from d8mesh.backends.ollama.stream import LOOK_S, Part, Stream, said, shut
from d8mesh.config import MODEL_PATTERN
from d8mesh.errors import (
    BackendAnswerError,
    BackendDeadlineError,
    BackendStalledError,
    BackendTooLargeError,
    BackendUnavailableError,
    TaskCancelledError,
)

#: A probe answers within this many seconds, or the service counts as down.
PROBE_S: Final = 3.0
#: The list of a few hundred models takes some 100 KB.
MAX_PROBE_BYTES: Final = 4 * 1024 * 1024
MAX_MODELS: Final = 500
#: What was offered is asked again after this many seconds.
PROBE_AGE_S: Final = 30.0
#: Seconds without a token in the middle of an answer: far slower than any model that fits.
STALL_S: Final = 60.0
#: Before the first token a large model may have to come from a slow disk.
FIRST_TEXT_S: Final = 300.0
#: An answer's text: the longest contexts give a few megabytes, and a result must hold it.
MAX_TEXT_BYTES: Final = 8 * 1024 * 1024


class OllamaBackend:
    """Ollama at one address.

    Args:
        base_url: ``http://HOST:PORT``, as `Config.ollama_url`.
        default_model: runs what asks for a model that is not offered; if it is not
            offered itself, the first one is.
        max_tokens: of an answer, when the task says nothing.
        temperature: when the task says nothing.

    Thread: any; each chat has a connection and a reading thread of its own.
    """

    def __init__(
        self,
        base_url: str,
        *,
        default_model: str | None = None,
        max_tokens: int = 2000,
        temperature: float = 0.7,
    ) -> None:
        self.base_url = base_url
        self._default_model = default_model
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._seen: tuple[float, Availability] | None = None

    def probe(self) -> Availability:
        """Ask Ollama what it offers; never raises, takes some `PROBE_S` at most."""
        try:
            models = _names_in(_get_json(self.base_url, "/api/tags"))
            loaded = _names_in(_get_json(self.base_url, "/api/ps"))
        except BackendAnswerError as error:
            seen = Availability(is_up=False, reason=str(error))
        except (OSError, http.client.HTTPException) as error:
            seen = Availability(
                is_up=False,
                reason=f"Ollama does not answer at {self.base_url} ({said(error)}): "
                "start it there, or set DEEPSEEK_BASE_URL",
            )
        else:
            reason = "" if models else "Ollama has no models: pull one with `ollama pull NAME`"
            seen = Availability(is_up=bool(models), models=models, loaded=loaded, reason=reason)
        self._seen = (time.monotonic(), seen)
        return seen

    def choose(self, requested: str | None) -> str:
        """Return the model that runs what asks for `requested`.

        Raises:
            BackendUnavailableError: Ollama is down or has no models.
        """
        seen = self._seen
        is_fresh = seen is not None and time.monotonic() - seen[0] < PROBE_AGE_S
        offer = seen[1] if seen is not None and is_fresh and seen[1].is_up else self.probe()
        if not offer.is_up:
            raise BackendUnavailableError(offer.reason)
        for wanted in (requested, self._default_model):
            for name in (wanted, f"{wanted}:latest"):
                if wanted and name in offer.models:
                    return str(name)
        return offer.models[0]

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
            TaskCancelledError: `is_cancelled` said so.
            BackendUnavailableError: Ollama is down, busy (503) or has no models.
            BackendStalledError: no text came for too long.
            BackendDeadlineError: `deadline_s` are over.
            BackendAnswerError: a redirect, a compressed or broken answer.
            BackendTooLargeError: more than `MAX_TEXT_BYTES` of text, or noise beside it.
            BackendError: Ollama reports a failure.
        """
        model = self.choose(request.model)
        temperature, tokens = request.temperature, request.max_tokens
        stream = Stream(
            self.base_url,
            request.messages,
            model=model,
            temperature=self._temperature if temperature is None else temperature,
            max_tokens=self._max_tokens if tokens is None else tokens,
        )
        answer = _Answer(model)
        watch = _Watch(deadline_s, stall_s)
        try:
            while not answer.is_complete:
                if is_cancelled():
                    raise TaskCancelledError
                watch.check(time.monotonic())
                part = stream.next(LOOK_S)
                if part is None:
                    continue
                text = answer.add(part)
                if text or part.is_thinking:
                    watch.hear(time.monotonic())
                if text:
                    on_text(text)
        except BackendUnavailableError:
            self._seen = None
            raise
        finally:
            stream.close()
        return answer.completion()


class _Watch:
    """The two clocks of an answer: its deadline, and the silence since the last text."""

    def __init__(self, deadline_s: float, stall_s: float | None) -> None:
        self._started = self._heard = time.monotonic()
        self._deadline_s = deadline_s
        self._later_s = STALL_S if stall_s is None else stall_s
        self._patience_s = FIRST_TEXT_S if stall_s is None else stall_s

    def hear(self, now: float) -> None:
        self._heard, self._patience_s = now, self._later_s

    def check(self, now: float) -> None:
        if now - self._started >= self._deadline_s:
            raise BackendDeadlineError(
                f"the answer was not complete after {max(self._deadline_s, 0):.0f} s: "
                "raise deadline_s or TASK_TIMEOUT, or ask for fewer max_tokens"
            )
        if now - self._heard >= self._patience_s:
            raise BackendStalledError(f"Ollama sent no text for {self._patience_s:g} s")


class _Answer:
    """The pieces of an answer so far."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._texts: list[str] = []
        self._bytes = 0
        self._last: Part | None = None

    @property
    def is_complete(self) -> bool:
        return self._last is not None

    def add(self, part: Part) -> str:
        self._bytes += len(part.text.encode("utf-8", "replace"))
        if self._bytes > MAX_TEXT_BYTES:
            raise BackendTooLargeError(f"Ollama sent more than {MAX_TEXT_BYTES} bytes of text")
        self._texts.append(part.text)
        if part.is_last:
            self._last = part
        return part.text

    def completion(self) -> Completion:
        assert self._last is not None
        return Completion(
            text="".join(self._texts),
            model=self._model,
            tokens_used=self._last.tokens_used,
            load_s=self._last.load_s,
            is_cut=self._last.is_cut,
        )


# --- probing --------------------------------------------------------------------------


def _get_json(base_url: str, path: str) -> Any:
    """Return what a GET answers, read within `PROBE_S` and `MAX_PROBE_BYTES`."""
    parts = urlsplit(base_url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=PROBE_S)
    is_late = threading.Event()
    with contextlib.closing(connection):
        connection.connect()

        def stop(connected: socket.socket = connection.sock) -> None:
            is_late.set()
            shut(connected)

        timer = threading.Timer(PROBE_S, stop)
        timer.daemon = True
        timer.start()
        try:
            connection.request("GET", path, headers={"Accept": "application/json"})
            response = connection.getresponse()
            body = response.read(MAX_PROBE_BYTES + 1) if response.status == 200 else b""
        finally:
            timer.cancel()
        if is_late.is_set():
            raise TimeoutError(f"no answer within {PROBE_S:g} s")
    where = f"{base_url}{path}"
    if response.status != 200:
        raise BackendAnswerError(f"{where} answered HTTP {response.status}: is it Ollama?")
    if len(body) > MAX_PROBE_BYTES:
        raise BackendAnswerError(f"{where} answered with more than {MAX_PROBE_BYTES} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BackendAnswerError(f"{where} did not answer with JSON: is it Ollama?") from error


def _names_in(answer: Any) -> tuple[str, ...]:
    """Return the model names of a list; odd names are left out, they could not be asked for."""
    rows = answer.get("models") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise BackendAnswerError("the list of models has not the form of Ollama's: is it Ollama?")
    names = [row.get("model") or row.get("name") for row in rows if isinstance(row, dict)]
    named = [name for name in names if isinstance(name, str) and re.fullmatch(MODEL_PATTERN, name)]
    return tuple(dict.fromkeys(named))[:MAX_MODELS]
