"""A task's partial output as events, whatever form they are written in."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Final

from d8mesh.core.protocol.messages import Stream
from d8mesh.doors.rest.dialect import decoded
from d8mesh.doors.waiting import Doorbell, Places
from d8mesh.errors import D8Error
from d8mesh.http.answers import Refusal, Response
from d8mesh.http.events import SSE, Event, Source, stream
from d8mesh.http.routes import Request
from d8mesh.nodes.client.aio.node import AsyncNode
from d8mesh.nodes.client.stream_buffer import KeptOutput
from d8mesh.nodes.client.streams import Position

#: Streams open at the same time: each costs some kilobytes, and a turn of its own for a piece.
MAX_STREAMS: Final = 2500
#: A comment after this long without output: proxies and readers see that we live.
ALIVE_S: Final = 5.0
#: After this long without output it is asked whether the task has been finished meanwhile.
FINISHED_LOOK_S: Final = 15.0
#: Readers woken in one turn of the loop: half a millisecond's work, then others are served.
WOKEN_AT_ONCE: Final = 8
#: Messages whose chunks are made once for all readers: those are in step, or nearly.
MADE_AT_ONCE: Final = 64


class StreamCalls:
    """Answers ``GET /api/tasks/{id}/stream``; `status_of` returns the documented status body."""

    def __init__(
        self, mesh: AsyncNode, status_of: Callable[[str], Awaitable[dict[str, Any]]]
    ) -> None:
        self._mesh, self._status_of = mesh, status_of
        self._places = Places(MAX_STREAMS)
        self._listened: dict[str, _Reading] = {}
        self._bells = _Bells(mesh.loop)
        #: the chunks made last, by their message's identity: all its readers share them
        self._made: dict[int, tuple[Stream, list[Event]]] = {}

    async def stream(self, request: Request, task_id: str) -> Response:
        """Open a stream, unless too many are open."""
        body = await self._status_of(task_id)
        if self._places.is_full:
            raise Refusal(
                "access.flood", "too many streams are open: ask for the status, or come again"
            )
        return stream(self._events(task_id, is_over=bool(body["completed_at"])), SSE)

    async def _events(self, task_id: str, *, is_over: bool) -> Source:
        """Yield what is heard of a task until it is finished."""
        kept = self._mesh.kept_output(task_id)
        position = Position(is_whole=kept is not None)
        with self._places.one(), ExitStack() as stack:
            if kept is None and not is_over:
                kept = self._listen(task_id, stack)
            if kept is not None:
                bell = Doorbell(self._mesh.loop)
                stack.callback(self._mesh.hear(task_id, lambda _: self._bells.ring(bell)))
                yield "listening"
                heard = self._heard(task_id, kept, position, bell)
                async with aclosing(heard):
                    async for item in heard:
                        yield item
        try:
            yield Event("done", await self._status_of(task_id))
        except D8Error as error:
            yield Event("done", {"error": str(error), "code": error.code})

    def _listen(self, task_id: str, stack: ExitStack) -> KeptOutput:
        """Return what keeps a task's output from now on, as long as somebody reads it."""
        listened = self._listened.get(task_id)
        if listened is None:
            kept = KeptOutput()
            listened = _Reading(kept, self._mesh.listen(task_id, kept.hear))
            self._listened[task_id] = listened
        listened.readers += 1

        def leave() -> None:
            listened.readers -= 1
            if not listened.readers:
                listened.stop()
                del self._listened[task_id]

        stack.callback(leave)
        return listened.kept

    async def _heard(
        self, task_id: str, kept: KeptOutput, position: Position, bell: Doorbell
    ) -> Source:
        at, is_over, next_look = 0, False, time.monotonic() + FINISHED_LOOK_S
        while not is_over:
            at, heard, is_over = kept.read(at, 0.0)
            for each in heard:
                for event in self._events_of(each, position):
                    yield event
            if heard or is_over or await bell.is_rung(ALIVE_S * random.uniform(0.7, 1.0)):
                continue
            yield "alive"
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + FINISHED_LOOK_S
                is_over = await self._is_finished(task_id)

    def _events_of(self, heard: Stream, position: Position) -> Iterator[Event]:
        known = position.next_seq if heard.attempt == position.attempt else 0
        is_restart, missed = position.move(heard)
        if is_restart:
            yield Event("restart", {"attempt": heard.attempt})
        if missed:
            yield Event("missed", {"attempt": heard.attempt, "count": missed})
        _, chunks = self._made.get(id(heard), (None, None))
        if chunks is None:
            chunks = [_chunk(heard, n) for n in range(len(heard.payloads))]
            self._made[id(heard)] = heard, chunks
            if len(self._made) > MADE_AT_ONCE:
                del self._made[next(iter(self._made))]
        # What a late listener is told may overlap with what came meanwhile.
        yield from chunks[max(0, known - heard.first_seq) :]

    async def _is_finished(self, task_id: str) -> bool:
        try:
            return bool((await self._status_of(task_id))["completed_at"])
        except D8Error:
            return False  # the broker is away, and the stream goes on when it is back


@dataclass(slots=True)
class _Reading:
    """A task that is listened to once, for all who read it; what ends that."""

    kept: KeptOutput
    stop: Callable[[], None]
    readers: int = 0


class _Bells:
    """Rings bells, some in each turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: deque[Doorbell] = deque()

    def ring(self, bell: Doorbell) -> None:
        """Ring this one soon, after those before it."""
        if not self._due:
            self._loop.call_soon(self._ring_some)
        self._due.append(bell)

    def _ring_some(self) -> None:
        for _ in range(min(WOKEN_AT_ONCE, len(self._due))):
            self._due.popleft().ring()
        if self._due:
            self._loop.call_soon(self._ring_some)


def _chunk(heard: Stream, n: int) -> Event:
    value = decoded(heard.payloads[n])
    name = "text" if isinstance(value, str) else "data"
    return Event("chunk", {"attempt": heard.attempt, "seq": heard.first_seq + n, name: value})
