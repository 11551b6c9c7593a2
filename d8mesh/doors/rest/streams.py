"""A task's partial output as server-sent events."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from werkzeug.wrappers import Request, Response

from d8mesh.core.protocol.messages import Stream
from d8mesh.doors.rest.dialect import decoded
from d8mesh.doors.rest.mesh import Mesh, Places
from d8mesh.doors.rest.workers import is_gone
from d8mesh.errors import D8Error
from d8mesh.http.answers import Refusal
from d8mesh.nodes.client.keeping import KeptOutput, Position

#: A comment line after this long without output: proxies and readers see that we live.
ALIVE_S: Final = 5.0
#: After this long without output it is asked whether the task has been finished meanwhile.
LOOK_S: Final = 15.0
#: Messages kept for a reader that is slower than the task; beyond it the stream ends.
MAX_WAITING: Final = 2000
EVENT_STREAM: Final = "text/event-stream"

_encoder: Final = msgspec.json.Encoder()
#: Beside newlines some readers (Python's `str.splitlines`, so httpx and requests) end a line at
#: these too; inside JSON they only stand in texts, where an escape means the same.
_SEPARATORS: Final = tuple(
    (char.encode(), b"\\u%04x" % ord(char)) for char in ("\x85", "\u2028", "\u2029")
)


class StreamCalls:
    """Answers ``GET /api/tasks/{id}/stream``."""

    def __init__(
        self, mesh: Mesh, places: Places, status_of: Callable[[str], dict[str, Any]]
    ) -> None:
        self._mesh = mesh
        self._places = places
        self._status_of = status_of

    def stream(self, request: Request, task_id: str) -> Response:
        """Open a stream.

        Raises:
            Refusal: too many are open.
            UnknownTaskError: there is no such task.
        """
        body = self._status_of(task_id)
        if request.method == "HEAD":
            return Response(b"", content_type=EVENT_STREAM)
        if not self._places.take():
            raise Refusal(
                "access.flood", "too many streams are open: ask for the status, or come again"
            )
        events = _Events(self._mesh, task_id, self._status_of, lambda: is_gone(request))
        response = Response(events.run(body), content_type=EVENT_STREAM)
        response.headers["Cache-Control"] = "no-store"
        response.call_on_close(self._places.give_back)
        response.call_on_close(events.close)
        return response


class _Events:
    """The events of one stream.

    Thread: `_hear` is called by the client's I/O thread, the rest by the request's.
    """

    def __init__(
        self,
        mesh: Mesh,
        task_id: str,
        status_of: Callable[[str], dict[str, Any]],
        is_gone: Callable[[], bool],
    ) -> None:
        self._mesh, self._task_id = mesh, task_id
        self._status_of, self._is_gone = status_of, is_gone
        self._heard: queue.SimpleQueue[Stream | None] = queue.SimpleQueue()
        self._is_too_slow = False
        self._position = Position(is_whole=False)
        self._stop: Callable[[], None] | None = None

    def run(self, body: dict[str, Any]) -> Iterator[bytes]:
        """Yield the events until the task is finished or the reader is gone."""
        kept = self._mesh.outputs.keeping.of(self._task_id)
        if kept is not None:
            yield b": listening\n\n"
            yield from self._all_of(kept)
            if self._is_gone():
                return
        elif not body["completed_at"]:
            self._stop = self._mesh.outputs.listen(self._task_id, self._hear)
            yield b": listening\n\n"
            yield from self._until_finished()
            if self._is_too_slow or self._is_gone():
                return
        try:
            yield _event("done", self._status_of(self._task_id))
        except D8Error as error:
            yield _event("done", {"error": str(error), "code": error.code})

    def close(self) -> None:
        """Stop listening."""
        if self._stop is not None:
            self._stop()
            self._stop = None

    def _hear(self, stream: Stream | None) -> None:
        if self._heard.qsize() >= MAX_WAITING:
            self._is_too_slow = True
        else:
            self._heard.put(stream)

    def _all_of(self, kept: KeptOutput) -> Iterator[bytes]:
        """Yield all that was heard since the submit, and what comes, to the end."""
        at, is_over, self._position = 0, False, Position(is_whole=True)
        next_look = time.monotonic() + LOOK_S
        while not is_over and not self._is_gone():
            at, heard, is_over = kept.read(at, ALIVE_S * random.uniform(0.7, 1.0))
            for stream in heard:
                yield from self._events_of(stream)
            if heard or is_over:
                continue
            yield b": alive\n\n"
            if time.monotonic() >= next_look:
                next_look, is_over = time.monotonic() + LOOK_S, self._is_finished()

    def _until_finished(self) -> Iterator[bytes]:
        next_look = time.monotonic() + LOOK_S
        while not self._is_too_slow and not self._is_gone():
            try:
                stream = self._heard.get(timeout=ALIVE_S * random.uniform(0.7, 1.0))
            except queue.Empty:
                yield b": alive\n\n"
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + LOOK_S
                    if self._is_finished():
                        return
                continue
            if stream is None:
                return
            yield from self._events_of(stream)

    def _events_of(self, stream: Stream) -> Iterator[bytes]:
        known = self._position.next_seq if stream.attempt == self._position.attempt else 0
        is_restart, missed = self._position.move(stream)
        if is_restart:
            yield _event("restart", {"attempt": stream.attempt})
        if missed:
            yield _event("missed", {"attempt": stream.attempt, "count": missed})
        for seq, payload in enumerate(stream.payloads, stream.first_seq):
            if seq < known:
                continue  # what a late listener is told may overlap with what came meanwhile
            value = decoded(payload)
            name = "text" if isinstance(value, str) else "data"
            yield _event("chunk", {"attempt": stream.attempt, "seq": seq, name: value})

    def _is_finished(self) -> bool:
        try:
            return bool(self._status_of(self._task_id)["completed_at"])
        except D8Error:
            return False  # the broker is away, and the stream goes on when it is back


def _event(name: str, body: dict[str, Any]) -> bytes:
    line = _encoder.encode(body)
    for separator, escaped in _SEPARATORS:
        line = line.replace(separator, escaped)
    return b"event: %s\ndata: %s\n\n" % (name.encode("ascii"), line)
