"""What has reached who asked, told to the broker until that has it on its disk.

Said again after a new Welcome and when no answer comes: what is not acknowledged may never have
arrived, and then what was said would stay on the disk.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from d8mesh.core.protocol.messages import MAX_BATCH_TASKS, SOFT_FRAME_BYTES, Delivered

#: Tasks that are remembered while no orchestrator answers, each with a rest of about 500 bytes:
#: beyond it the oldest are left to the retention rules.
MAX_DELIVERIES: Final = 50_000


class Deliveries:
    """The tasks whose delivery is to be told, and the messages that are not acknowledged."""

    def __init__(self) -> None:
        #: task id, what is kept of its result, for how long all of it is kept
        self._waiting: deque[tuple[str, bytes, float]] = deque()
        #: number -> the message, and when it was sent last
        self._sent: dict[int, tuple[Delivered, float]] = {}
        self._count = 0
        self._next_seq = 1

    def __bool__(self) -> bool:
        return bool(self._waiting or self._sent)

    def add(self, task_id: str, payload: bytes, keep_s: float) -> None:
        """Take in a task; it is told with all that are waiting when `take` is called."""
        self._waiting.append((task_id, payload, keep_s))
        self._count += 1
        if self._count > MAX_DELIVERIES:
            self._drop()

    def acknowledge(self, seq: int) -> None:
        """A message is on the broker's disk."""
        message, _ = self._sent.pop(seq, (None, 0.0))
        if message is not None:
            self._count -= len(message.ids)

    def pending(self) -> set[str]:
        """Return the tasks that are not acknowledged."""
        told = {task_id for message, _ in self._sent.values() for task_id in message.ids}
        return told | {task_id for task_id, _, _ in self._waiting}

    def take(self, now: float) -> list[Delivered]:
        """Return what waits, as few messages as can be: a task's rest may be large."""
        messages: list[Delivered] = []
        open_until: dict[float, Delivered] = {}
        sizes: dict[float, int] = {}
        while self._waiting:
            task_id, payload, keep_s = self._waiting.popleft()
            message = open_until.get(keep_s)
            sizes[keep_s] = size = sizes.get(keep_s, 0) + len(payload)
            if message is None or size > SOFT_FRAME_BYTES or len(message.ids) == MAX_BATCH_TASKS:
                message = open_until[keep_s] = Delivered(self._next_seq, [], [], keep_s)
                sizes[keep_s] = len(payload)
                self._next_seq += 1
                messages.append(message)
            message.ids.append(task_id)
            message.payloads.append(payload)
        self._sent.update((message.seq, (message, now)) for message in messages)
        return messages

    def resent(self, now: float, after_s: float) -> list[Delivered]:
        """Return what was sent at least `after_s` ago without an answer: it is sent again."""
        late = [message for message, sent in self._sent.values() if now - sent >= after_s]
        self._sent.update((message.seq, (message, now)) for message in late)
        return late

    def _drop(self) -> None:
        if self._sent:
            seq = next(iter(self._sent))
            self.acknowledge(seq)
        else:
            self._waiting.popleft()
            self._count -= 1
