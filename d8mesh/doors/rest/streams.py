"""A task's partial output as events, whatever form they are written in."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing
from typing import Any, Final, TypeAlias

from d8mesh.core.protocol.messages import Stream
from d8mesh.doors.rest.dialect import decoded
from d8mesh.doors.waiting import Places
from d8mesh.errors import D8Error
from d8mesh.http.answers import Refusal, Response
from d8mesh.http.events import SSE, Event, Source, stream
from d8mesh.http.request import Request
from d8mesh.nodes.client.aio.node import AsyncNode
from d8mesh.nodes.client.stream_buffer import KeptOutput
from d8mesh.nodes.client.streams import Position

#: Streams open at the same time: each costs some kilobytes, and a turn of its own for a piece.
MAX_STREAMS: Final = 2500
#: A comment after this long without output: proxies and readers see that we live.
ALIVE_S: Final = 5.0
#: After this long without output it is asked whether the task has been finished meanwhile.
LOOK_S: Final = 15.0
#: Messages kept for a reader that is slower than the task; beyond it the stream ends.
MAX_WAITING: Final = 2000
#: Output kept for who comes later while somebody listens; a worker keeps as much.
TAIL_BYTES: Final = 65_536
#: Readers woken in one turn of the loop: half a millisecond's work, then others are served.
WOKEN_AT_ONCE: Final = 8
#: Messages whose chunks are made once for all readers: those are in step, or nearly.
MADE_AT_ONCE: Final = 64

#: Returns what there is to tell, and whether that is the end.
Take: TypeAlias = Callable[[], tuple[list[Stream], bool]]


class StreamCalls:
    """Answers ``GET /api/tasks/{id}/stream``.

    Args:
        mesh: a client of the broker.
        status_of: returns the documented status body.
    """

    def __init__(
        self, mesh: AsyncNode, status_of: Callable[[str], Awaitable[dict[str, Any]]]
    ) -> None:
        self._mesh, self._status_of = mesh, status_of
        self._places = Places(MAX_STREAMS)
        self._listened: dict[str, Listened] = {}
        self._bells, self._chunks = _Bells(mesh.loop), _Chunks()

    async def stream(self, request: Request, task_id: str) -> Response:
        """Open a stream.

        Raises:
            Refusal: too many are open.
            UnknownTaskError: there is no such task.
        """
        body = await self._status_of(task_id)
        if self._places.is_full:
            raise Refusal(
                "access.flood", "too many streams are open: ask for the status, or come again"
            )
        return stream(self._events(task_id, is_over=bool(body["completed_at"])), SSE)

    async def _events(self, task_id: str, *, is_over: bool) -> Source:
        """Yield what is heard of a task until it is finished, or its reader is too slow."""
        reader, kept = Reader(self._mesh.loop), self._mesh.kept_output(task_id)
        take: Take = reader.take
        with self._places.one(), ExitStack() as stack:
            if kept is not None:
                stack.callback(self._mesh.hear(task_id, lambda _: self._bells.ring(reader)))
                take = _all_of(kept)
            elif not is_over:
                stack.callback(self._listen(task_id, reader))
            if kept is not None or not is_over:
                yield "listening"
                heard = self._heard(task_id, reader, take, Position(is_whole=kept is not None))
                async with aclosing(heard):
                    async for item in heard:
                        yield item
        if reader.is_too_slow:
            return
        try:
            yield Event("done", await self._status_of(task_id))
        except D8Error as error:
            yield Event("done", {"error": str(error), "code": error.code})

    def _listen(self, task_id: str, reader: Reader) -> Callable[[], None]:
        """Let one more read what comes of a task from now on; return what ends that."""
        listened = self._listened.setdefault(task_id, Listened(self._bells))
        if listened.join(reader):
            listened.stop = self._mesh.listen(task_id, listened.hear)

        def leave() -> None:
            if listened.leave(reader):
                del self._listened[task_id]

        return leave

    async def _heard(self, task_id: str, reader: Reader, take: Take, position: Position) -> Source:
        next_look, is_over = time.monotonic() + LOOK_S, False
        while not is_over:
            heard, is_over = take()
            for each in heard:
                for event in self._chunks.events_of(each, position):
                    yield event
            if heard or is_over or await reader.is_rung(ALIVE_S * random.uniform(0.7, 1.0)):
                continue
            yield "alive"
            if time.monotonic() >= next_look:
                next_look, is_over = time.monotonic() + LOOK_S, await self._is_finished(task_id)

    async def _is_finished(self, task_id: str) -> bool:
        try:
            return bool((await self._status_of(task_id))["completed_at"])
        except D8Error:
            return False  # the broker is away, and the stream goes on when it is back


class Reader:
    """Who reads one stream: what it was not told yet, and what it is woken by.

    Args:
        loop: where it waits.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Stream] = []
        self._bell: asyncio.Future[bool] | None = None
        self._is_over = self.is_too_slow = False

    def put(self, heard: Stream | None) -> None:
        """Have this told; None: it is the end."""
        if heard is None:
            self._is_over = True
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append(heard)
        else:
            self.is_too_slow = self._is_over = True

    def take(self) -> tuple[list[Stream], bool]:
        """Return what waits, and whether that is the end."""
        taken, self._waiting = self._waiting, []
        return taken, self._is_over

    def ring(self) -> None:
        """Wake it."""
        self._resolve(True)

    async def is_rung(self, within_s: float) -> bool:
        """Wait to be woken; False: nobody did in time."""
        self._bell = self._loop.create_future()
        timer = self._loop.call_later(within_s, self._resolve, False)
        try:
            return await self._bell
        finally:
            timer.cancel()

    def _resolve(self, is_rung: bool) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(is_rung)


class Listened:
    """A task that is listened to: once, for all who read it.

    Args:
        bells: wake the readers.
    """

    def __init__(self, bells: _Bells) -> None:
        self._bells = bells
        self._readers: set[Reader] = set()
        #: the last of what was heard, for who comes later
        self._tail: deque[Stream] = deque()
        self._tail_bytes = 0
        self._is_over = False
        #: stops listening
        self.stop: Callable[[], None] = lambda: None

    def join(self, reader: Reader) -> bool:
        """Let one more read; return whether it is the first."""
        self._readers.add(reader)
        for each in self._tail:
            reader.put(each)
        if self._is_over:
            reader.put(None)
        return len(self._readers) == 1

    def leave(self, reader: Reader) -> bool:
        """Let go of a reader; return whether it was the last."""
        self._readers.discard(reader)
        if not self._readers:
            self.stop()
        return not self._readers

    def hear(self, heard: Stream | None) -> None:
        """Have this told to all; None: it is the end."""
        self._is_over = heard is None
        if heard is not None:
            self._tail.append(heard)
            self._tail_bytes += _size(heard)
            while self._tail_bytes > TAIL_BYTES and len(self._tail) > 1:
                self._tail_bytes -= _size(self._tail.popleft())
        for reader in self._readers:
            reader.put(heard)
            self._bells.ring(reader)


class _Bells:
    """Wakes readers, some in each turn of the loop.

    Args:
        loop: theirs.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: deque[Reader] = deque()

    def ring(self, reader: Reader) -> None:
        """Wake this one soon, after those before it."""
        if not self._due:
            self._loop.call_soon(self._ring_some)
        self._due.append(reader)

    def _ring_some(self) -> None:
        for _ in range(min(WOKEN_AT_ONCE, len(self._due))):
            self._due.popleft().ring()
        if self._due:
            self._loop.call_soon(self._ring_some)


class _Chunks:
    """Makes the chunks of a message once for all who are told it."""

    def __init__(self) -> None:
        #: the last ones, by the message's identity while it is held here
        self._made: dict[int, tuple[Stream, list[Event]]] = {}

    def events_of(self, heard: Stream, position: Position) -> Iterator[Event]:
        """Yield the events that a reader at `position` is told of a message."""
        known = position.next_seq if heard.attempt == position.attempt else 0
        is_restart, missed = position.move(heard)
        if is_restart:
            yield Event("restart", {"attempt": heard.attempt})
        if missed:
            yield Event("missed", {"attempt": heard.attempt, "count": missed})
        # What a late listener is told may overlap with what came meanwhile.
        yield from self._of(heard)[max(0, known - heard.first_seq) :]

    def _of(self, heard: Stream) -> list[Event]:
        made = self._made.get(id(heard))
        if made is not None:
            return made[1]
        chunks = []
        for seq, payload in enumerate(heard.payloads, heard.first_seq):
            value = decoded(payload)
            name = "text" if isinstance(value, str) else "data"
            chunks.append(Event("chunk", {"attempt": heard.attempt, "seq": seq, name: value}))
        self._made[id(heard)] = heard, chunks
        if len(self._made) > MADE_AT_ONCE:
            del self._made[next(iter(self._made))]
        return chunks


def _all_of(kept: KeptOutput) -> Take:
    """Return what takes what is kept, from the start on."""
    at = 0

    def take() -> tuple[list[Stream], bool]:
        nonlocal at
        at, heard, is_over = kept.read(at, 0.0)
        return heard, is_over

    return take


def _size(heard: Stream) -> int:
    return sum(map(len, heard.payloads))
