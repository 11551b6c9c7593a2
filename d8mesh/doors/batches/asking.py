"""Many lines asked of the mesh as durable tasks: in groups with keys, a bounded number at once.

The same groups under the same keys are the same tasks, whoever submits them and however often: so
whoever goes on after an end, of his own or of the orchestrator, is told what came meanwhile.
Nothing is kept here of a line but how its answer is to be written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from msgspec.structs import replace

from d8mesh.core.client.submission import Submission, TaskOutcome
from d8mesh.core.protocol.messages import COMPLETED_STATE, MAX_FRAME_BYTES, Group
from d8mesh.doors.llm.asked import LlmTask
from d8mesh.errors import (
    D8Error,
    KeyConflictError,
    PayloadTooLargeError,
    TaskError,
    TaskRejectedError,
)
from d8mesh.nodes.client.aio.node import AsyncNode
from d8mesh.nodes.client.aio.waits import Signal
from d8mesh.nodes.client.groups import encode_data, filled, group_of
from d8mesh.nodes.client.wishes import wish_of

#: Of data that is submitted at once; one task may have more, and then goes alone.
GROUP_PART_BYTES: Final = MAX_FRAME_BYTES // 4
#: Of data that the orchestrator has not on its disk yet: it is held here until then.
UNACCEPTED_BYTES: Final = 8 * 1024 * 1024
#: How long until a refused group is submitted again: a full disk or queue lasts longer.
RESUBMIT_S: Final = 2.0
#: Tasks that are cancelled at once.
CANCELS: Final = 64
#: How long one may take.
CANCEL_ANSWER_S: Final = 10.0
#: Ended lines that are handed on at once.
ENDED_LINES: Final = 256
#: Of a group whose key is that of other data, as another version of d8mesh made them.
_OTHER_KEY: Final = "/2"
#: Refusals that pass.
_PASSING_CODES: Final = frozenset({"queue.full", "disk.low", "broker.draining", "access.flood"})


@dataclass(frozen=True, slots=True)
class AskedLine:
    """One line and what it asks for; no tasks: `error` says why it cannot be asked."""

    number: int
    custom_id: str
    tasks: Sequence[LlmTask] = ()
    #: what is needed to write the answer; small
    form: object = None
    error: D8Error | None = None


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """How a task of a line ended."""

    task_id: str
    #: as the line spells it
    model: str
    outcome: TaskOutcome

    @property
    def has_succeeded(self) -> bool:
        """True if there is a result."""
        return self.outcome.state == COMPLETED_STATE


#: Stands for an end that is still unknown.
NO_END: Final = TaskEnd("", "", TaskOutcome(0, b""))


@dataclass(slots=True, eq=False)
class EndedLine:
    """A line of which all is known."""

    number: int
    custom_id: str
    form: object
    error: D8Error | None = None
    ends: list[TaskEnd] = field(default_factory=list)
    #: those whose end is still unknown
    missing: int = 0


@dataclass(frozen=True, slots=True)
class LinesAtOnce:
    """How much is under way at once: of the lines of several groups."""

    lines: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LineGroup:
    """Lines that are submitted together."""

    key: str
    lines: Sequence[AskedLine]
    #: those of them that are wanted; the others are there because the key stands for all
    wanted: frozenset[int]


@dataclass(slots=True, eq=False)
class _GroupPart:
    """What of a group is submitted at once: nearly always all of it."""

    key: str
    #: empty once it is accepted
    groups: list[Group] = field(default_factory=list)
    #: of each task: its line, its place there, its model
    places: list[tuple[EndedLine, int, str]] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def line_count(self) -> int:
        """How many lines its tasks are of."""
        return len({line.number for line, _, _ in self.places})


@dataclass(slots=True, eq=False)
class _SentGroup:
    """A part of a group that is under way."""

    part: _GroupPart
    #: lines of which the end is handed on
    wanted: frozenset[int]
    submission: Submission
    #: done when all its tasks have ended; failed when nothing can come any more
    over: asyncio.Future[None]
    left: int
    is_cancelled: bool = False


class Asking:
    """Asks groups of lines, and hands on how each line ended.

    Args:
        node: the session with the mesh.
        window: what may be under way at once.
        priority, source: of all tasks.
        on_ended: awaited with lines that have ended, in any order, each once.

    Thread: the loop's.
    """

    def __init__(
        self,
        node: AsyncNode,
        window: LinesAtOnce,
        on_ended: Callable[[Sequence[EndedLine]], Awaitable[None]],
        *,
        priority: int,
        source: str,
    ) -> None:
        self._node, self._window, self._on_ended = node, window, on_ended
        self._priority, self._source = priority, source
        self._ended: deque[EndedLine] = deque()
        self._sent: set[_SentGroup] = set()
        self._lines = self._bytes = self._unaccepted_bytes = 0
        #: something has ended, or everything has
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_stopped = False
        self._following: set[asyncio.Task[None]] = set()

    async def run(self, groups: AsyncIterator[LineGroup]) -> None:
        """Ask all groups; return when every wanted line of them has been handed on.

        Raises:
            D8Error: the client has been closed.
            Whatever `groups` or `on_ended` raised.
        """
        feeder = asyncio.create_task(self._feed(groups), name="d8-lines")
        feeder.add_done_callback(lambda _: self._changed.set())
        try:
            while not feeder.done() or self._ended or self._following:
                await self._changed.wait()
                self._changed.clear()
                self._raise_failed(feeder)
                while self._ended:
                    count = min(len(self._ended), ENDED_LINES)
                    await self._on_ended([self._ended.popleft() for _ in range(count)])
        finally:
            for each in (feeder, *self._following):
                each.cancel()
            await asyncio.gather(feeder, *self._following, return_exceptions=True)

    @property
    def waiting_id(self) -> str:
        """The id of a task that has not ended; "" if there is none."""
        for sent in self._sent:
            submission = sent.submission
            for index in range(submission.count if submission.is_accepted else 0):
                if not submission.is_known(index):
                    return submission.task_id(index)
        return ""

    async def stop(self) -> None:
        """Ask nothing more, and cancel what is under way; `run` returns when all that has ended."""
        self._is_stopped = True
        self._has_room.set()
        for sent in list(self._sent):
            await self._cancel(sent)

    def _raise_failed(self, feeder: asyncio.Task[None]) -> None:
        for each in (feeder, *self._following):
            if each.done() and not each.cancelled() and (error := each.exception()):
                raise error

    # ---------------------------------------------------------------------- submitting

    async def _feed(self, groups: AsyncIterator[LineGroup]) -> None:
        async for group in groups:
            await self._send(group)
            while self._is_full and not self._is_stopped:
                self._has_room.clear()
                await self._has_room.wait()

    @property
    def _is_full(self) -> bool:
        window = self._window
        return (
            self._lines >= window.lines
            or self._bytes >= window.size_bytes
            or self._unaccepted_bytes >= UNACCEPTED_BYTES
        )

    async def _send(self, group: LineGroup) -> None:
        """Submit a group, in parts if it is very large; lines without tasks have ended."""
        part = _GroupPart(group.key)
        for line in group.lines:
            tasks, error = ([], line.error) if line.error else _payloads(line)
            ended = EndedLine(line.number, line.custom_id, line.form, error, missing=len(tasks))
            if not tasks:
                self._end(group.wanted, ended)
                continue
            size = sum(len(payload) for _, _, payload in tasks)
            if part.size_bytes and part.size_bytes + size > GROUP_PART_BYTES:
                await self._submit(group, part)
                part = _GroupPart(f"{group.key}+{line.number}")
            part.size_bytes += size
            for place, (task, wish, payload) in enumerate(tasks):
                self._join(part.groups, task.type, wish, payload)
                part.places.append((ended, place, task.model))
                ended.ends.append(NO_END)
        if part.groups:
            await self._submit(group, part)

    async def _submit(self, group: LineGroup, part: _GroupPart) -> None:
        """Submit a part of a group, and follow it."""
        submission = await self._node.enqueue(part.groups, None, key=part.key)
        over = self._node.loop.create_future()
        sent = _SentGroup(part, group.wanted, submission, over, len(part.places))
        self._sent.add(sent)
        self._lines += part.line_count
        self._bytes += part.size_bytes
        self._unaccepted_bytes += part.size_bytes
        following = asyncio.create_task(self._follow(sent), name="d8-group")
        self._following.add(following)
        following.add_done_callback(self._followed)

    def _join(self, groups: list[Group], kind: str, wish: str, payload: bytes) -> None:
        """Add a task to the groups of a submit: alike ones that follow each other share one."""
        shared = replace(group_of(kind, wish, {"priority": self._priority}), source=self._source)
        last = groups[-1] if groups else None
        if last is None or filled(last, []) != shared:
            groups.append(filled(shared, [payload]))
        else:
            last.payloads.append(payload)

    # ----------------------------------------------------------------------- following

    async def _follow(self, sent: _SentGroup) -> None:
        """Return when all of it has ended."""
        try:
            try:
                await self._accepted(sent)
            finally:
                sent.part.groups = []
                self._unaccepted_bytes -= sent.part.size_bytes
                self._has_room.set()
            for index in range(len(sent.part.places)):
                if sent.submission.is_known(index):
                    self._note(sent, index)
                else:
                    signal = self._node.waits.signal(sent.submission, index)
                    signal.add_done_callback(partial(self._come, sent, index))
            if self._is_stopped:
                await self._cancel(sent)
            await sent.over
        except TaskRejectedError as error:
            for line in dict.fromkeys(line for line, _, _ in sent.part.places):
                line.error, line.ends = error, []
                self._end(sent.wanted, line)
        finally:
            self._sent.discard(sent)
            self._lines -= sent.part.line_count
            self._bytes -= sent.part.size_bytes
            self._has_room.set()

    async def _accepted(self, sent: _SentGroup) -> None:
        """Return when it is on the orchestrator's disk; what passes is waited for."""
        key = sent.part.key
        while True:
            try:
                await self._node.waits.settled(sent.submission, None)
                return
            except KeyConflictError:
                if key != sent.part.key:
                    raise
                key += _OTHER_KEY
            except TaskRejectedError as error:
                if error.code not in _PASSING_CODES or self._is_stopped:
                    raise
                await asyncio.sleep(RESUBMIT_S)
            sent.submission = await self._node.enqueue(sent.part.groups, None, key=key)

    def _come(self, sent: _SentGroup, index: int, signal: Signal) -> None:
        if signal.cancelled():
            return
        error = signal.exception()
        if error is None:
            self._note(sent, index)
        elif not sent.over.done():
            sent.over.set_exception(error)

    def _note(self, sent: _SentGroup, index: int) -> None:
        """Take what has come of one task."""
        line, place, model = sent.part.places[index]
        submission = sent.submission
        line.ends[place] = TaskEnd(submission.task_id(index), model, submission.outcome(index))
        submission.payloads[index] = None  # from here on it is the line's
        line.missing -= 1
        if not line.missing:
            self._end(sent.wanted, line)
        sent.left -= 1
        if not sent.left and not sent.over.done():
            sent.over.set_result(None)

    def _end(self, wanted: frozenset[int], line: EndedLine) -> None:
        if line.number in wanted:
            self._ended.append(line)
            self._changed.set()

    def _followed(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            self._following.discard(task)
        self._changed.set()

    async def _cancel(self, sent: _SentGroup) -> None:
        """Cancel what of a group has not ended; one that is not accepted is when it is."""
        submission = sent.submission
        if sent.is_cancelled or not submission.is_accepted:
            return
        sent.is_cancelled = True
        places = asyncio.Semaphore(CANCELS)
        left = [index for index in range(submission.count) if not submission.is_known(index)]
        await asyncio.gather(*(self._cancel_one(submission, each, places) for each in left))

    async def _cancel_one(
        self, submission: Submission, index: int, places: asyncio.Semaphore
    ) -> None:
        """Cancel a task, however long the broker is away; or it ends meanwhile."""
        async with places:
            while not submission.is_known(index) and not self._node.is_closed:
                try:
                    await self._node.ask(
                        "cancel", {"id": submission.task_id(index)}, CANCEL_ANSWER_S
                    )
                    return
                except TaskError:
                    return  # it is not known there: its outcome says so
                except D8Error:
                    await asyncio.sleep(RESUBMIT_S)


def _payloads(line: AskedLine) -> tuple[list[tuple[LlmTask, str, bytes]], D8Error | None]:
    """Return the tasks of a line with wish and data, or why they cannot be asked."""
    found: list[tuple[LlmTask, str, bytes]] = []
    size = 0
    try:
        for task in line.tasks:
            payload = encode_data(task.data)
            size += len(payload)
            if found and size > GROUP_PART_BYTES:
                raise PayloadTooLargeError(
                    f"all that it asks for is more than {GROUP_PART_BYTES} bytes"
                )
            found.append((task, wish_of(task.type, task.data), payload))
    except TaskRejectedError as error:
        return [], error
    return found, None
