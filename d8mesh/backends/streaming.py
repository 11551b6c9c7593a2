"""What all backends share: an answer that comes in pieces, its clocks, its bounds, its end.

An answer is read by a thread of its own, over a connection that can be ended at any moment
(`AnswerReader`); who waits for it looks at the clocks in between (`completion`). Knows no
service: a backend says what to ask, and what a line of the answer means.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.reading_threads import READING_THREADS
from d8mesh.core.protocol.chat import Completion, Piece, completion_of
from d8mesh.errors import (
    BackendAnswerError,
    BackendBusyError,
    BackendDeadlineError,
    BackendError,
    BackendStalledError,
    BackendTooLargeError,
    D8Error,
    TaskCancelledError,
)

#: An answer, thoughts and all: the longest contexts give a few megabytes, a result must hold it.
MAX_TEXT_BYTES: Final = 8 * 1024 * 1024
#: Pieces of an answer: those of the longest contexts, each with its own bookkeeping.
MAX_PIECES: Final = 1_000_000
#: All bytes of an answer: each token comes with some 150 bytes around it.
MAX_WIRE_BYTES: Final = 512 * 1024 * 1024
#: One line of an answer: one token, or the last line with its figures.
MAX_LINE_BYTES: Final = 1024 * 1024
#: What is read, and what is shown, of an error's text.
MAX_ERROR_BYTES: Final = 4096
MAX_SERVICE_ERROR_CHARS: Final = 300
#: HTTP statuses of a service that may answer later.
BUSY: Final = frozenset({429, 503})
#: Connecting to a machine on the LAN.
CONNECT_S: Final = 5.0
#: Pieces read ahead while a handler is busy with the one before.
MAX_AHEAD: Final = 256
#: Closing waits so long for its reading thread, which a shut socket ends at once.
JOIN_S: Final = 2.0
#: How often a wait looks whether it is still wanted, where nothing wakes it.
WANTED_LOOK_S: Final = 0.1
#: The same where something does; an answer whose reading thread has died is noticed by it.
READER_LOOK_S: Final = 5.0

#: The system's ``struct linger``: on, for 0 seconds.
_RESET_AT_CLOSE: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class Part(Protocol):
    """What a line of an answer means."""

    @property
    def ending(self) -> object:
        """Something true if it is the last."""

    @property
    def is_sign_of_life(self) -> bool:
        """Whether the service has got further."""


PartT = TypeVar("PartT", bound=Part)


@dataclass(frozen=True, slots=True)
class RefusedAnswer:
    """An answer with another HTTP status than 200."""

    status: int
    #: by their names in lower case
    headers: Mapping[str, str]
    #: the beginning of it
    body: bytes

    @property
    def reason(self) -> str:
        """What it says, in one bounded line."""
        return f"HTTP {self.status}: {error_in(self.body)}"


def completion(
    reader: AnswerReader[Piece], model: str, run: ChatRun, *, max_pieces: int | None = None
) -> Completion:
    """Return the whole answer, each piece told as it comes; the reader is closed in any case.

    Args:
        max_pieces: of something that the model said; more come only if the service passes over
            its bound of tokens.

    Raises:
        TaskCancelledError: `is_cancelled` said so.
        BackendStalledError: nothing came for too long.
        BackendDeadlineError: `deadline_s` are over.
        BackendTooLargeError: more than `MAX_TEXT_BYTES` of text, or than `max_pieces`.
        BackendError: what the reader came upon.
    """
    pieces: list[Piece] = []
    count, size, is_started = 0, 0, False
    with contextlib.closing(parts(reader, run)) as coming:
        for piece in coming:
            if not is_started:
                is_started = True
                run.on_start(model, None)
            count += piece.is_sign_of_life
            size += piece.size_bytes
            if size > MAX_TEXT_BYTES:
                sent = f"{reader.service} sent more than {MAX_TEXT_BYTES} bytes of text"
                raise BackendTooLargeError(sent)
            if max_pieces is not None and count > max_pieces:
                raise BackendTooLargeError(
                    f"{reader.service} generates without end: more tokens than it was asked for"
                )
            if len(pieces) >= MAX_PIECES:
                raise BackendTooLargeError(f"{reader.service} sent more pieces than an answer has")
            if piece.size_bytes or piece.ending:  # others may come without end
                pieces.append(piece)
            run.on_piece(piece)
    return completion_of(pieces, model)


def parts(reader: AnswerReader[PartT], run: ChatRun) -> Generator[PartT, None, None]:
    """Yield what comes until the last; the one place where the clocks of an answer are looked at.

    The time that the taker of a part needs is no silence. The reader is closed in any case.

    Raises:
        TaskCancelledError: `is_cancelled` said so.
        BackendStalledError: no sign of life for `first_token_s`, later for `token_gap_s`.
        BackendDeadlineError: `deadline_s` are over.
        BackendError: what the reader came upon.
    """
    started = heard = now = time.monotonic()
    patience_s, part = run.first_token_s, None
    look_s = READER_LOOK_S if run.is_told else WANTED_LOOK_S
    undo = run.on_cancel(reader.end)
    try:
        while part is None or not part.ending:
            if run.is_cancelled():
                raise TaskCancelledError
            if now - started >= run.deadline_s:
                raise BackendDeadlineError(
                    f"the answer was not complete after {max(run.deadline_s, 0):.0f} s: "
                    "raise deadline_s or TASK_TIMEOUT, or ask for fewer max_tokens"
                )
            left_s = min(started + run.deadline_s, heard + patience_s) - now
            part = reader.next(min(max(left_s, 0.0), look_s))
            now = time.monotonic()
            is_alive = part is not None and part.is_sign_of_life
            if not is_alive and now - heard >= patience_s:
                raise BackendStalledError(f"{reader.service} sent nothing for {patience_s:g} s")
            if part is not None:
                yield part
                now = time.monotonic()
            if is_alive:
                heard, patience_s = now, run.token_gap_s
    finally:
        undo()
        reader.close()


class AnswerReader(Generic[PartT]):
    """An answer's connection, read by a thread of its own so that it can always be ended.

    Args:
        service: what it is called in errors.
        url: where it is, for errors.
        lines: given this reader, which is to know the connection; yields the answer's lines.
        piece_of: what a line means; `TypeError` and the like if it is no line of an answer.
        refused: the error that a status other than 200 means; None: as `refusal_error` says. Its
            `details` then name the status.
    """

    def __init__(
        self,
        service: str,
        url: str,
        *,
        lines: Callable[[AnswerReader[PartT]], Iterator[bytes]],
        piece_of: Callable[[Any], PartT],
        refused: Callable[[RefusedAnswer], D8Error] | None = None,
    ) -> None:
        self.service, self.url = service, url
        self._lines, self._piece_of, self._refused = lines, piece_of, refused
        #: None wakes who waits
        self._pieces: queue.Queue[PartT | Exception | None] = queue.Queue(MAX_AHEAD)
        self._is_closed = threading.Event()
        self._socket: socket.socket | None = None
        self._is_read = threading.Event()
        READING_THREADS.run(self._read)

    def next(self, wait_s: float) -> PartT | None:
        """Return the next piece, or None if none came within `wait_s`; raise its error."""
        try:
            piece = self._pieces.get(timeout=wait_s)
        except queue.Empty:
            if not self._is_read.is_set() or self._is_closed.is_set() or not self._pieces.empty():
                return None
            raise BackendError(f"the thread that reads {self.service}'s answer has died") from None
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        """End the connection, whatever it is doing; a service then stops generating."""
        self.end()
        self._is_read.wait(JOIN_S)

    def end(self) -> None:
        """The same without waiting, and wake who waits for a piece. Thread: any."""
        self._is_closed.set()
        shut(self._socket)
        with contextlib.suppress(queue.Full):  # then nobody waits
            self._pieces.put_nowait(None)

    def _read(self) -> None:
        try:
            self._read_all()
        finally:
            self._is_read.set()

    def _read_all(self) -> None:
        try:
            for line in self._lines(self):
                piece = self._piece_of(json.loads(line))
                if not self._put(piece) or piece.ending:
                    return
            self._put(BackendAnswerError(f"{self.service} ended its answer in the middle"))
        except Exception as error:
            self._put(self._translated(error))

    def _put(self, piece: PartT | Exception) -> bool:
        while not self._is_closed.is_set():
            with contextlib.suppress(queue.Full):
                self._pieces.put(piece, timeout=WANTED_LOOK_S)
                return True
        return False

    def connected(self, connection: socket.socket) -> None:
        """Note what the answer comes through, so that it can be ended."""
        self._socket = connection
        if self._is_closed.is_set():
            shut(connection)

    def guard(self, response: http.client.HTTPResponse) -> None:
        """Let only a plain answer through; raise what another one means."""
        status, service = response.status, self.service
        if status == 200:
            encoding = response.getheader("content-encoding", "identity")
            if encoding.lower() != "identity":
                raise BackendAnswerError(f"{service} sent a compressed answer ({encoding[:40]!r})")
            return
        headers = {name.lower(): value for name, value in response.getheaders()}
        refusal = RefusedAnswer(status, headers, response.read(MAX_ERROR_BYTES))
        if self._refused is None or 300 <= status < 400:
            error: D8Error = refusal_error(service, refusal)
        else:
            error = self._refused(refusal)
        error.details = {"status": status}
        raise error

    def _translated(self, error: Exception) -> D8Error:
        """Return the error of ours for what the connection or JSON raised."""
        if isinstance(error, D8Error):
            return error
        ours: BackendError
        service, told = self.service, said(error)
        if isinstance(error, OSError | http.client.HTTPException):
            ours = BackendAnswerError(f"the connection to {service} broke ({told})")
        elif isinstance(
            error, ValueError | TypeError | LookupError | AttributeError | RecursionError
        ):
            ours = BackendAnswerError(f"{service} sent something that is not a line of its answers")
        else:
            ours = BackendError(f"{service} could not be asked ({told})")
        ours.__cause__ = error
        return ours


def shut(connection: socket.socket | None) -> None:
    """Wake whoever reads from `connection`: closing it alone would not.

    Its closing then resets it: a service that is blocked in sending would not see an
    orderly end.
    """
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            connection.shutdown(socket.SHUT_RDWR)


def refusal_error(service: str, refusal: RefusedAnswer) -> BackendError:
    """Return what a status other than 200 means, where a service says no more than HTTP does."""
    if 300 <= refusal.status < 400:
        return BackendAnswerError(
            f"{service} redirects (HTTP {refusal.status}): is the address right?"
        )
    if refusal.status in BUSY:
        return BackendBusyError(f"{service} is busy ({refusal.reason})")
    return BackendError(f"{service} failed ({refusal.reason})")


def error_in(content: bytes) -> str:
    """Return what the body of an error says, in one bounded line."""
    text = content[:MAX_ERROR_BYTES].decode("utf-8", "replace").strip()
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(text)
        text = str(answer["error"]) if isinstance(answer, dict) and "error" in answer else text
    return shown(text)


def lines_of(
    service: str, chunks: Iterable[bytes], *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[bytes]:
    """Yield the lines that are not empty, split at newlines alone, and bounded."""
    begun, total = bytearray(), 0  # a line that has not ended grows in place, however it is cut
    for chunk in chunks:
        *lines, rest = chunk.split(b"\n")
        if lines:
            lines[0] = bytes(begun) + lines[0]
            begun.clear()
        begun += rest
        total += len(chunk)
        if total > MAX_WIRE_BYTES or len(begun) > max_line_bytes:
            raise BackendTooLargeError(f"{service} sent more than an answer may hold")
        yield from filter(bytes.strip, lines)
    if begun.strip():
        yield bytes(begun)


def text_of(value: Any) -> str:
    """Return a text of the answer without halves of characters, which JSON can write."""
    if not (value is None or isinstance(value, str)):
        raise TypeError("a text of the answer is none")
    return (value or "").encode("utf-8", "replace").decode("utf-8")


def clean_object(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object of the answer as a result can hold it."""
    return {text_of(key): _clean(inner) for key, inner in value.items()}


def rows_of(value: Any) -> tuple[Any, ...]:
    if not (value is None or isinstance(value, list)):
        raise TypeError("a list of the answer is none")
    return tuple(map(_clean, value or ()))


def _clean(value: Any) -> Any:
    """Return what a result can hold: whole characters, finite numbers."""
    if isinstance(value, str):
        return text_of(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, dict):
        return clean_object(value)
    return value


def whole_number(value: Any) -> int:
    return min(max(value, 0), 2**53) if isinstance(value, int) else 0


def said(error: BaseException) -> str:
    """Return `error` in one bounded line: its text, where it has none its class."""
    return shown(str(error) or type(error).__name__)


def shown(text: str) -> str:
    """Return `text` in one bounded line without control characters."""
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * MAX_SERVICE_ERROR_CHARS])
    return " ".join(line.split())[:MAX_SERVICE_ERROR_CHARS] or "no reason given"
