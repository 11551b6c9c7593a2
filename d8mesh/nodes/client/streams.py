"""Partial output of tasks: who hears it, once, and what a reader of it sees."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from d8mesh.core.protocol.messages import Stream
from d8mesh.edge.logs import event

_log: Final = logging.getLogger("d8mesh.client")

#: Called with each `Stream` of a task, and with None once the task is finished.
OnStream: TypeAlias = Callable[[Stream | None], None]


class Restarted:
    """In `Task.stream`: a new attempt began; forget what came before."""

    def __repr__(self) -> str:
        return "RESTARTED"


RESTARTED: Final = Restarted()


@dataclass(frozen=True, slots=True)
class Missed:
    """In `Task.stream`: here pieces of the output are missing; `count` is None if unknown."""

    count: int | None


class StreamDeduplicator:
    """Passes a task's partial output on, once: reconnects and late starts bring some again.

    Args:
        on_stream: called with each `Stream`, and with None once the task is finished.
    """

    def __init__(self, on_stream: OnStream) -> None:
        self._on_stream = on_stream
        self._attempt = self._next_seq = 0

    def __call__(self, stream: Stream | None) -> None:
        """Take in what was heard."""
        if stream is None:
            self._on_stream(None)
            return
        if stream.attempt != self._attempt:
            self._attempt, self._next_seq = stream.attempt, 0
        elif not stream.payloads:
            return  # that this attempt began is known
        known = self._next_seq - stream.first_seq
        if known > 0:
            if known >= len(stream.payloads):
                return
            first_seq = self._next_seq
            stream = Stream(stream.id, stream.attempt, first_seq, stream.payloads[known:])
        self._next_seq = stream.first_seq + len(stream.payloads)
        self._on_stream(stream)


class Listeners:
    """Who hears the partial output of which task.

    Thread: `add` and `tasks` may be used by any, the rest by the I/O thread.
    """

    def __init__(self) -> None:
        self._of: dict[str, list[OnStream]] = {}

    @property
    def tasks(self) -> frozenset[str]:
        """The tasks whose output is listened to."""
        return frozenset(self._of.copy())

    def add(self, task_id: str, listener: OnStream) -> None:
        """Have `listener` hear a task."""
        self._of.setdefault(task_id, []).append(listener)

    def remove(self, task_id: str, listener: OnStream) -> bool:
        """Have it hear no more; return whether it was the last of the task."""
        left = self._of.get(task_id, [])
        if listener in left:
            left.remove(listener)
        return not left and self._of.pop(task_id, None) is not None

    def hear(self, stream: Stream) -> None:
        """Pass on what came."""
        _pass_on(self._of.get(stream.id, ()), stream)

    def finish(self, task_ids: Iterable[str]) -> None:
        """Tell of the end of these tasks; nobody hears them any more."""
        for task_id in task_ids:
            _pass_on(self._of.pop(task_id, ()), None)


def _pass_on(listeners: Iterable[OnStream], stream: Stream | None) -> None:
    """Call these; whatever they raise is theirs and stops nobody else."""
    for hear in list(listeners):
        try:
            hear(stream)
        except Exception as error:
            event(_log, logging.ERROR, "listener.raised", error=repr(error))


class Move(NamedTuple):
    """What a reader of a stream learns beside its pieces."""

    is_restart: bool  #: the output begins anew
    missed: int  #: how many pieces are missing before these


class Position:
    """Where a reader of a stream is, so that it sees what is missing.

    Args:
        is_whole: the stream is heard from its first piece on.
    """

    __slots__ = ("attempt", "is_whole", "next_seq")

    def __init__(self, *, is_whole: bool) -> None:
        self.is_whole = is_whole
        self.attempt = self.next_seq = 0

    def move(self, stream: Stream) -> Move:
        """Go on behind what was heard."""
        is_first, is_new = not self.attempt, stream.attempt != self.attempt
        if is_new:
            self.attempt, self.next_seq = stream.attempt, 0
        missed = max(0, stream.first_seq - self.next_seq) if stream.payloads else 0
        if is_first and not self.is_whole:
            missed = 0
        self.next_seq = max(self.next_seq, stream.first_seq + len(stream.payloads))
        return Move(is_new and not is_first, missed)

    def read(self, stream: Stream) -> Iterator[Any]:
        """Yield what a caller of `Task.stream` sees of this."""
        is_restart, missed = self.move(stream)
        if is_restart:
            yield RESTARTED
        if missed:
            yield Missed(missed)
        yield from map(msgspec.msgpack.decode, stream.payloads)
