"""What all backends share: an answer that comes in pieces, its clocks, its bounds, its end.

Who asks reads the answer himself, over a connection that others can end at any moment
(`AnswerReader`): who cancels, or the thread that looks at the clocks (`AnswerClocks`). Knows no
service: a backend says what to ask, and what a line of the answer means.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from d8mesh.backends.answer_clocks import ANSWER_CLOCKS
from d8mesh.backends.answer_in_pieces import AnswerInPieces
from d8mesh.backends.answer_loop import ANSWER_LOOP
from d8mesh.backends.backend import ChatRun
from d8mesh.core.protocol.chat import Completion, Piece, completion_of
from d8mesh.edge.transport.http_answer import HttpAnswer
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
#: How often a wait looks whether it is still wanted, where nothing wakes it.
WANTED_LOOK_S: Final = 0.1

#: In place of a line, which never holds it: nothing more is there now.
NOTHING_NOW: Final = b"\n"
#: So many pieces of an answer are read by its own thread: short ones need no other.
PIECES_ALONE: Final = 4

_decode: Final = msgspec.json.Decoder().decode
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
    growing = AnswerInPieces(reader.service, model, run, max_pieces)
    with contextlib.closing(_coming(reader, run)) as coming:
        for piece in coming:
            if piece is None:
                continue
            growing.take(piece)
            if growing.count != PIECES_ALONE or piece.ending is not None:
                continue
            connection = reader.unblocked()
            if connection is not None:
                ANSWER_LOOP.run(connection, partial(growing.take_all, coming))
    return completion_of(growing.pieces, model)


def parts(reader: AnswerReader[PartT], run: ChatRun) -> Generator[PartT, None, None]:
    """Yield what comes until the last. The reader is closed in any case.

    Raises:
        D8Error: as of `completion`, without the bounds.
    """
    with contextlib.closing(_coming(reader, run)) as coming:
        for part in coming:
            if part is not None:
                yield part


def _coming(reader: AnswerReader[PartT], run: ChatRun) -> Generator[PartT | None, None, None]:
    """Yield what comes until the last; the one place where the clocks of an answer are looked at.

    None: nothing more is there now, of a reader that is unblocked.

    The time that the taker of a part needs is no silence. The reader is closed in any case.

    Raises:
        TaskCancelledError: `is_cancelled` said so.
        BackendStalledError: no sign of life for `first_token_s`, later for `token_gap_s`.
        BackendDeadlineError: `deadline_s` are over.
        BackendError: what the reader came upon.
    """
    clock = _Clock(reader, run)
    undo = run.on_cancel(clock.cancel)
    ANSWER_CLOCKS.watch(clock.look)
    try:
        clock.look(time.monotonic())  # it may be too late to ask
        for part in reader.parts():
            if part is None:
                yield None
                continue
            clock.stop()
            yield part
            clock.go_on(is_alive=part.is_sign_of_life)
    finally:
        ANSWER_CLOCKS.forget(clock.look)
        undo()
        reader.end()


class _Clock(Generic[PartT]):
    """Ends an answer that is not wanted, too late or silent for too long."""

    def __init__(self, reader: AnswerReader[PartT], run: ChatRun) -> None:
        self._reader, self._run = reader, run
        now = time.monotonic()
        self._late_at = now + run.deadline_s
        self._heard, self._patience_s = now, run.first_token_s
        self._silent_at = now + run.first_token_s

    def stop(self) -> None:
        """A part has come: what its taker does with it is no silence."""
        self._silent_at = math.inf

    def go_on(self, *, is_alive: bool) -> None:
        """Its taker is done with it."""
        if is_alive:
            self._heard, self._patience_s = time.monotonic(), self._run.token_gap_s
        self._silent_at = self._heard + self._patience_s

    def cancel(self) -> None:
        self._reader.end(TaskCancelledError())

    def look(self, now: float) -> None:
        run = self._run
        if run.is_cancelled():
            self.cancel()
        elif now >= self._silent_at:
            text = f"{self._reader.service} sent nothing for {self._patience_s:g} s"
            self._reader.end(BackendStalledError(text))
        elif now >= self._late_at:
            text = (
                f"the answer was not complete after {max(run.deadline_s, 0):.0f} s: "
                "raise deadline_s or TASK_TIMEOUT, or ask for fewer max_tokens"
            )
            self._reader.end(BackendDeadlineError(text))


class AnswerReader(Generic[PartT]):
    """An answer's connection: one thread reads from it, any other can end it.

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
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_ended = False
        self._why: D8Error | None = None

    def parts(self) -> Iterator[PartT | None]:
        """Yield what the lines mean until the last, whose part has an ending.

        None: nothing more is there now, once it is unblocked.

        Raises:
            D8Error: what `end` was told, what the service says, or that it broke.
        """
        if not self._is_wanted():
            raise self._why or BackendError(f"{self.service} is not asked any more")
        lines = self._lines(self)
        try:
            for line in lines:
                if line == NOTHING_NOW:
                    yield None
                    continue
                part = self._piece_of(decoded(line))
                if not self._is_wanted():
                    break
                yield part
                if part.ending:
                    return
            error: D8Error = BackendAnswerError(f"{self.service} ended its answer in the middle")
        except Exception as caught:
            error = self._translated(caught)
        finally:
            with self._lock:  # its connection closes now: nobody may touch what gets its number
                self._socket = None
            close = getattr(lines, "close", None)
            if close is not None:
                close()
        raise self._why or error

    def end(self, why: D8Error | None = None) -> None:
        """End the connection, whatever it is doing; a service then stops generating. Thread: any.

        Args:
            why: what who reads it gets; what was said first counts.
        """
        with self._lock:
            self._why = self._why or why
            self._is_ended = True
            shut(self._socket)

    @property
    def is_broken_off(self) -> bool:
        """Whether somebody has ended its connection."""
        return self._is_ended

    def _is_wanted(self) -> bool:
        return not self._is_ended

    def connected(self, connection: socket.socket) -> None:
        """Note what the answer comes through, so that it can be ended."""
        with self._lock:
            self._socket = connection
            if self._is_ended:
                shut(connection)

    def unblocked(self) -> socket.socket | None:
        """Have `parts` wait no longer, from now on.

        Returns:
            The connection that tells when more has come; None: it has to be waited for.
        """
        with self._lock:
            connection = self._socket
            if connection is None or isinstance(connection, ssl.SSLSocket):
                return None
            connection.setblocking(False)
            return connection

    def guard(self, response: HttpAnswer) -> None:
        """Let only a plain answer through; raise what another one means."""
        status, service = response.status, self.service
        if status == 200:
            encoding = response.getheader("content-encoding", "identity")
            if encoding.lower() != "identity":
                raise BackendAnswerError(f"{service} sent a compressed answer ({encoding[:40]!r})")
            return
        headers = dict(response.getheaders())
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
    """Yield the lines that are not empty, split at newlines alone, and bounded.

    For an empty chunk `NOTHING_NOW` is yielded.
    """
    begun, total = bytearray(), 0  # a line that has not ended grows in place, however it is cut
    for chunk in chunks:
        if not chunk:
            yield NOTHING_NOW
            continue
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


def decoded(line: bytes) -> Any:
    """Return the JSON of a line.

    Raises:
        ValueError: it is none; so does `RecursionError`.
    """
    try:
        return _decode(line)
    except (msgspec.MsgspecError, RecursionError):
        return json.loads(line)  # which takes halves of characters and NaN too


def text_of(value: Any) -> str:
    """Return a text of the answer without halves of characters, which JSON can write."""
    if not (value is None or isinstance(value, str)):
        raise TypeError("a text of the answer is none")
    if value is None or value.isascii():
        return value or ""
    return value.encode("utf-8", "replace").decode("utf-8")


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
