"""Partial output of tasks whose submit said that it is listened to, kept until it is read.

It comes before anybody asks for it; what is kept is bounded, and a reader sees by the numbers
of the pieces what is missing.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.messages import Stream
from d8mesh.nodes.client.streams import Listeners, StreamDeduplicator

#: Partial output kept of one task, and of all; beyond it the oldest goes.
MAX_TASK_BYTES: Final = 4 * 1024 * 1024
MAX_ALL_BYTES: Final = 64 * 1024 * 1024
#: Tasks whose output is kept at the same time.
MAX_KEPT_TASKS: Final = 10_000
#: What a piece costs beside its bytes.
PIECE_BYTES: Final = 200


class KeptPart(NamedTuple):
    """What a reader of kept output finds."""

    at: int  #: where to read on
    streams: list[Stream]
    is_over: bool  #: that is the end


NOTHING_KEPT: Final = KeptPart(0, [], False)


class KeptOutput:
    """The output of one task as far as it is kept; any number of readers, each from the start.

    Args:
        has_one_reader: what is read is let go of, so there is room for far more that is not.

    Thread: `hear` is called by the I/O thread, `read` by any.
    """

    def __init__(
        self, now: Callable[[], float] = time.monotonic, *, has_one_reader: bool = False
    ) -> None:
        self._now, self._has_one_reader = now, has_one_reader
        self._most_bytes = MAX_ALL_BYTES if has_one_reader else MAX_TASK_BYTES
        self._changed = threading.Condition()
        self._heard: deque[Stream] = deque()
        #: how many of `_heard` went
        self._gone = 0
        self.size_bytes = 0
        #: when the task ended (monotonic seconds)
        self.ended = math.inf

    def hear(self, stream: Stream | None) -> None:
        """Take in what was heard; None: the task is finished."""
        with self._changed:
            if stream is None:
                self.ended = min(self.ended, self._now())
            else:
                self._heard.append(stream)
                self.size_bytes += _size(stream)
                while self.size_bytes > self._most_bytes and len(self._heard) > 1:
                    self._drop()
            self._changed.notify_all()

    def clear(self) -> None:
        """Keep nothing of what was heard so far."""
        with self._changed:
            while self._heard:
                self._drop()

    def read(self, at: int, timeout_s: float) -> KeptPart:
        """Wait for something behind the first `at` that were heard.

        Returns:
            What there is; nothing and no end: the time is over.
        """
        until = time.monotonic() + timeout_s
        with self._changed:
            while True:
                count = self._gone + len(self._heard)
                if at < count:  # from the right: most readers lack the last one only
                    lacks = [*islice(reversed(self._heard), count - at)][::-1]
                    while self._has_one_reader and self._heard:
                        self._drop()
                    return KeptPart(count, lacks, self.ended < math.inf)
                left_s = until - time.monotonic()
                if self.ended < math.inf or left_s <= 0:
                    return KeptPart(count, [], self.ended < math.inf)
                self._changed.wait(left_s)

    def _drop(self) -> None:
        self.size_bytes -= _size(self._heard.popleft())
        self._gone += 1


class StreamBuffer:
    """Keeps the output of a client's tasks.

    Args:
        listeners: of the client's runner: who hears which task.

    Thread: `expect` is called under the lock of the client's waiters, `settled` by the I/O thread,
    `of` by any.
    """

    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners
        self._lock = threading.Lock()
        self._kept: dict[str, KeptOutput] = {}
        self._bytes = 0
        #: what has ended, the first first
        self._over: deque[tuple[float, str]] = deque()
        #: how long the output of a task is kept after its end, seconds
        self.keep_s = math.inf

    def of(self, task_id: str) -> KeptOutput | None:
        """Return what is kept of a task."""
        with self._lock:
            self._bound()
            return self._kept.get(task_id)

    def expect(self, submission: Submission, index: int) -> None:
        """Keep the output of a task from now on: it is about to be submitted."""
        self._keep(submission.task_id(index), KeptOutput())

    def settled(self, submission: Submission) -> None:
        """Forget what was refused; what a repeated key names has another id.

        What was not expected is not kept under that id either.
        """
        if submission.refusal is None and submission.accepted_as is None:
            return
        for index in range(submission.count):
            own_id = f"{submission.session}-{submission.first + index}"
            self._listeners.finish([own_id])  # nothing will come under this id
            with self._lock:
                was_kept = self._let_go(own_id)
            is_elsewhere = was_kept and submission.accepted_as is not None
            if is_elsewhere and self.of(submission.task_id(index)) is None:
                self._keep(submission.task_id(index), KeptOutput())

    def _keep(self, task_id: str, kept: KeptOutput) -> None:
        with self._lock:
            self._kept[task_id] = kept
            self._bound()
        hear = StreamDeduplicator(partial(self._hear, task_id, kept))
        self._listeners.add(task_id, hear)

    def _hear(self, task_id: str, kept: KeptOutput, stream: Stream | None) -> None:
        with self._lock:  # of both: what is let go of just now is counted, or is not
            before = kept.size_bytes
            kept.hear(stream)
            if self._kept.get(task_id) is not kept:
                return  # let go of: who reads it still does so to its end
            self._bytes += kept.size_bytes - before
            if stream is None:
                self._over.append((kept.ended, task_id))
            self._bound()

    def _bound(self) -> None:
        """Let go of what is too old or too much: first of what has ended, then the oldest."""
        over, until = self._over, time.monotonic() - self.keep_s
        while over and (over[0][0] <= until or self._is_too_much):
            self._let_go(over.popleft()[1])
        while self._is_too_much:
            self._let_go(next(iter(self._kept)))

    @property
    def _is_too_much(self) -> bool:
        return len(self._kept) > MAX_KEPT_TASKS or self._bytes > MAX_ALL_BYTES

    def _let_go(self, task_id: str) -> bool:
        kept = self._kept.pop(task_id, None)
        if kept is not None:
            self._bytes -= kept.size_bytes
            kept.clear()
        return kept is not None


def _size(stream: Stream) -> int:
    return PIECE_BYTES + sum(map(len, stream.payloads))
