"""One chat with Ollama as a stream that can be ended at any moment, and is bounded.

Knows nothing of deadlines: `d8mesh.backends.ollama` looks at the clocks between pieces.

The ``ollama`` package gives the connection. Its own reading and writing of messages is passed
by: it splits lines at U+2028 and the like, which may stand inside a text, reads images from files
of this machine if they are called like one, and drops fields that it does not know.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import socket
import struct
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from d8mesh.errors import (
    BackendAnswerError,
    BackendError,
    BackendTooLargeError,
    BackendUnavailableError,
)

if TYPE_CHECKING:
    import httpx

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
    thinking: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[Any, ...] = ()
    is_last: bool = False
    is_cut: bool = False
    tokens_used: int = 0
    load_s: float = 0.0

    @property
    def is_sign_of_life(self) -> bool:
        """True if the model has said something, though it may be no text."""
        return bool(self.text or self.thinking or self.tool_calls)


class ChatStream:
    """A chat's connection, read by a thread of its own so that it can always be ended."""

    def __init__(
        self,
        base_url: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str,
        temperature: float,
        max_tokens: int,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Begin; `more` are other fields of Ollama's request, its ``options`` among them."""
        self._base_url = base_url
        options = {**more.get("options", {}), "temperature": temperature, "num_predict": max_tokens}
        self._asked: dict[str, Any] = {
            "keep_alive": KEEP_ALIVE,
            **more,
            "model": model,
            "messages": [dict(message) for message in messages],
            "options": options,
            "stream": True,
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
            from ollama import Client  # noqa: F401
        except Exception as error:
            why = f"the ollama package cannot be imported ({said(error)})"
            self._put(BackendError(why))
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
            http: httpx.Client = client._client
            with http.stream("POST", "/api/chat", json=self._asked) as response:
                for line in _lines(response.iter_raw()):
                    yield _part_of(json.loads(line))

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


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines that are not empty, split at newlines alone, and bounded."""
    begun, total = bytearray(), 0  # a line that has not ended grows in place, however it is cut
    for chunk in chunks:
        *lines, rest = chunk.split(b"\n")
        if lines:
            lines[0] = bytes(begun) + lines[0]
            begun.clear()
        begun += rest
        total += len(chunk)
        if total > MAX_WIRE_BYTES or len(begun) > MAX_LINE_BYTES:
            raise BackendTooLargeError("Ollama sent more than an answer may hold")
        yield from filter(bytes.strip, lines)
    if begun.strip():
        yield bytes(begun)


def _part_of(answer: Any) -> Part:
    """Return one line of an answer; `TypeError` and the like if it is none."""
    if (error := answer.get("error")) is not None:
        raise BackendError(f"Ollama failed ({shown(str(error))})")
    message = answer["message"]
    text, thinking = _text(message.get("content")), _text(message.get("thinking"))
    calls = _rows(message.get("tool_calls"))
    if not all(isinstance(call, dict) for call in calls):
        raise TypeError("a call of a tool is no object")
    logprobs = _rows(answer.get("logprobs"))
    if answer.get("done") is not True:
        return Part(text, thinking, calls, logprobs)
    counts = (_whole_number(answer.get(key)) for key in ("prompt_eval_count", "eval_count"))
    return Part(
        text,
        thinking,
        calls,
        logprobs,
        is_last=True,
        is_cut=answer.get("done_reason") == "length",
        tokens_used=min(sum(counts), 2**53),
        load_s=_whole_number(answer.get("load_duration")) / 1e9,
    )


def _text(value: Any) -> str:
    """Return a text of the answer without halves of characters, which JSON can write."""
    if not (value is None or isinstance(value, str)):
        raise TypeError("a text of the answer is none")
    return (value or "").encode("utf-8", "replace").decode("utf-8")


def _rows(value: Any) -> tuple[Any, ...]:
    if not (value is None or isinstance(value, list)):
        raise TypeError("a list of the answer is none")
    return tuple(map(_clean, value or ()))


def _clean(value: Any) -> Any:
    """Return what a result can hold: whole characters, finite numbers."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, dict):
        return {_text(key): _clean(inner) for key, inner in value.items()}
    return value


def _whole_number(value: Any) -> int:
    return min(max(value, 0), 2**53) if isinstance(value, int) else 0


def _translated(error: Exception, base_url: str) -> BackendError:
    """Return the error of ours for what the package, httpx or JSON raised."""
    import httpx

    ours: BackendError
    if isinstance(error, BackendError):
        return error
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | ConnectionError):
        ours = BackendUnavailableError(f"Ollama does not answer at {base_url}")
    elif isinstance(error, httpx.HTTPError):
        ours = BackendAnswerError(f"the connection to Ollama broke ({said(error)})")
    elif isinstance(error, ValueError | TypeError | LookupError | AttributeError | RecursionError):
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
