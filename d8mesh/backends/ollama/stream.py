"""One chat with Ollama as a stream that can be ended at any moment, and is bounded.

Knows nothing of deadlines: `d8mesh.backends.ollama` looks at the clocks between pieces.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from d8mesh.errors import (
    BackendAnswerError,
    BackendError,
    BackendTooLargeError,
    BackendUnavailableError,
)

if TYPE_CHECKING:
    import httpx
    import ollama

#: All bytes of an answer: each token comes with some 150 bytes around it.
MAX_WIRE_BYTES: Final = 512 * 1024 * 1024
#: One line of an answer: one token, or the last line with its figures.
MAX_LINE_BYTES: Final = 1024 * 1024
#: What is read, and what is shown, of an error's text.
MAX_ERROR_BYTES: Final = 4096
MAX_ERROR_CHARS: Final = 300
#: Connecting to a machine on the LAN.
CONNECT_S: Final = 5.0
#: Ollama keeps the model loaded for so long after an answer: the next task finds it there.
KEEP_ALIVE: Final = "15m"
#: Pieces read ahead while a handler is busy with the one before.
MAX_AHEAD: Final = 256
#: Closing waits so long for its reading thread, which a shut socket ends at once.
JOIN_S: Final = 2.0
#: How often a wait looks whether it is still wanted.
LOOK_S: Final = 0.1

#: The system's ``struct linger``: on, for 0 seconds.
_RESET_AT_CLOSE: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of an answer; the last one carries the figures."""

    text: str
    is_thinking: bool = False
    is_last: bool = False
    is_cut: bool = False
    tokens_used: int = 0
    load_s: float = 0.0


class Stream:
    """A chat's connection, read by a thread of its own so that it can always be ended."""

    def __init__(
        self,
        base_url: str,
        messages: Sequence[Mapping[str, str]],
        *,
        model: str,
        temperature: float,
        max_tokens: int,
    ) -> None:
        self._base_url = base_url
        self._asked: dict[str, Any] = {
            "model": model,
            "messages": [dict(message) for message in messages],
            "options": {"temperature": temperature, "num_predict": max_tokens},
            "keep_alive": KEEP_ALIVE,
        }
        self._parts: queue.Queue[Part | Exception] = queue.Queue(MAX_AHEAD)
        self._is_closed = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._read, name="ollama-stream", daemon=True)
        self._thread.start()

    def next(self, wait_s: float) -> Part | None:
        """Return the next piece, or None if none came within `wait_s`; raise its error."""
        try:
            part = self._parts.get(timeout=wait_s)
        except queue.Empty:
            if self._thread.is_alive() or self._is_closed.is_set() or not self._parts.empty():
                return None
            raise BackendError("the thread that reads Ollama's answer has died") from None
        if isinstance(part, Exception):
            raise part
        return part

    def close(self) -> None:
        """End the connection, whatever it is doing; Ollama then stops generating."""
        self._is_closed.set()
        shut(self._socket)
        self._thread.join(JOIN_S)

    def _read(self) -> None:
        try:
            import httpx  # noqa: F401  (imports that fail must not do so unheard)
            import ollama  # noqa: F401
        except Exception as error:
            why = f"the ollama package cannot be imported ({said(error)})"
            self._put(BackendUnavailableError(why))
            return
        try:
            for part in self._said():
                if not self._put(part) or part.is_last:
                    return
            self._put(BackendAnswerError("Ollama ended its answer in the middle"))
        except Exception as error:
            self._put(_translated(error, self._base_url))

    def _put(self, part: Part | Exception) -> bool:
        while not self._is_closed.is_set():
            with contextlib.suppress(queue.Full):
                self._parts.put(part, timeout=LOOK_S)
                return True
        return False

    def _said(self) -> Iterator[Part]:
        import httpx
        import ollama

        client = ollama.Client(
            self._base_url,
            follow_redirects=False,
            trust_env=False,
            verify=self._base_url.startswith("https"),
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            event_hooks={"request": [self._prepare], "response": [_guard]},
        )
        with contextlib.closing(client):
            for part in client.chat(stream=True, **self._asked):
                yield _part_of(part)

    def _prepare(self, request: httpx.Request) -> None:
        request.headers.pop("authorization", None)  # the package adds OLLAMA_API_KEY by itself
        request.headers["accept-encoding"] = "identity"
        request.extensions["trace"] = self._note_socket

    def _note_socket(self, event: str, info: Mapping[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._is_closed.is_set():
                shut(self._socket)


def shut(connection: socket.socket | None) -> None:
    """Wake whoever reads from `connection`: closing it alone would not.

    Its closing then resets it: a service that is blocked in sending would not see an
    orderly end.
    """
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            connection.shutdown(socket.SHUT_RDWR)


def _guard(response: httpx.Response) -> None:
    """Let only a plain answer through, and not more of it than an answer may have."""
    status = response.status_code
    if status == 200:
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise BackendAnswerError(f"Ollama sent a compressed answer ({encoding[:40]!r})")
        _bound(response)
        return
    if 300 <= status < 400:
        raise BackendAnswerError(f"Ollama redirects (HTTP {status}): is it Ollama at all?")
    reason = f"HTTP {status}: {_error_text(response)}"
    if status in (429, 503):
        raise BackendUnavailableError(f"Ollama is busy ({reason})")
    raise BackendError(f"Ollama failed ({reason})")


def _error_text(response: httpx.Response) -> str:
    found = b""
    for chunk in response.iter_raw(1024):
        found += chunk
        if len(found) >= MAX_ERROR_BYTES:
            break
    text = found[:MAX_ERROR_BYTES].decode("utf-8", "replace").strip()
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(text)
        text = str(answer["error"]) if isinstance(answer, dict) and "error" in answer else text
    return shown(text)


def _bound(response: httpx.Response) -> None:
    """Count what comes through `response`: httpx itself buffers a line of any length."""
    import httpx

    inner = cast("httpx.SyncByteStream", response.stream)

    class Bounded(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            total = line = 0
            for chunk in inner:
                total += len(chunk)
                end = chunk.rfind(b"\n")
                line = line + len(chunk) if end < 0 else len(chunk) - end - 1
                if total > MAX_WIRE_BYTES or line > MAX_LINE_BYTES:
                    raise BackendTooLargeError("Ollama sent more than an answer may hold")
                yield chunk

        def close(self) -> None:
            inner.close()

    response.stream = Bounded()


def _part_of(part: ollama.ChatResponse) -> Part:
    text = (part.message.content or "").encode("utf-8", "replace").decode("utf-8")
    if not part.done:
        return Part(text, is_thinking=bool(part.message.thinking))
    tokens = max(part.prompt_eval_count or 0, 0) + max(part.eval_count or 0, 0)
    return Part(
        text,
        is_last=True,
        is_cut=part.done_reason == "length",
        tokens_used=min(tokens, 2**53),
        load_s=min(max(part.load_duration or 0, 0), 2**53) / 1e9,
    )


def _translated(error: Exception, base_url: str) -> BackendError:
    """Return the error of ours for what the package, httpx or JSON raised."""
    import httpx
    import ollama

    ours: BackendError
    if isinstance(error, BackendError):
        return error
    if isinstance(error, ollama.ResponseError):
        ours = BackendError(f"Ollama failed ({shown(error.error)})")
    elif isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | ConnectionError):
        ours = BackendUnavailableError(f"Ollama does not answer at {base_url}")
    elif isinstance(error, httpx.HTTPError):
        ours = BackendAnswerError(f"the connection to Ollama broke ({said(error)})")
    elif isinstance(error, ValueError | TypeError | AttributeError | RecursionError):
        ours = BackendAnswerError("Ollama sent something that is not a line of its answers")
    else:
        ours = BackendError(f"Ollama could not be asked ({said(error)})")
    ours.__cause__ = error
    return ours


def said(error: BaseException) -> str:
    """Return `error` in one bounded line."""
    return shown(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def shown(text: str) -> str:
    """Return `text` in one bounded line without control characters."""
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * MAX_ERROR_CHARS])
    return " ".join(line.split())[:MAX_ERROR_CHARS] or "no reason given"
