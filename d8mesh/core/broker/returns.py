"""Attempts that end without an error: given back, or lost between broker and worker.

They cost a task no attempt, else an orderly shutdown would use them up. But what comes back
again and again would go round for ever, unseen: so the pause before the next try grows, the
reason is kept for who asks, and beyond a bound it is an error like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from d8mesh.core.broker.outcomes import MAX_REASON_CHARS
from d8mesh.core.broker.records import TaskRecord
from d8mesh.core.broker.scheduler import Scheduler
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.protocol.task import ORDERLY, SUSPECT, Wait

#: The pause before the next try, doubled for each time before, up to the cap; between a half
#: and the whole of it is waited.
RETURN_PAUSE_S: Final = 1.0
MAX_RETURN_PAUSE_S: Final = 30.0
#: So many times a task that should have run comes back; the last is counted as a failed attempt.
#: With the pauses that is three to four minutes of a service that does not answer.
MAX_RETURNS: Final = 10
#: So many times a task may come back from workers that have room and did not start it.
MAX_UNSTARTED: Final = 100
#: The same from workers that leave: drains cost nothing, but one that is started again and again
#: and leaves each time would have a task go round for ever. With the pauses that is a working day.
MAX_LEFT: Final = 1000
#: What may happen to a task by chance, a message lost or two, needs no pause.
FREE_RETURNS: Final = 3


class ReturnKind(NamedTuple):
    """What a way of coming back costs: how it is counted, how often without a pause, at most."""

    returned: int
    free: int
    most: int


#: The worker could not run it: its service is busy or down.
SERVICE_DOWN: Final = ReturnKind(SUSPECT, 0, MAX_RETURNS)
#: The worker has it not, and has not said what became of it.
MISLAID: Final = ReturnKind(SUSPECT, FREE_RETURNS, MAX_RETURNS)
#: The worker did not start it and has room: it was given more than it can take now.
UNSTARTED: Final = ReturnKind(ORDERLY, FREE_RETURNS, MAX_UNSTARTED)
#: The worker leaves, or takes nothing for a while.
LEAVING: Final = ReturnKind(ORDERLY, FREE_RETURNS, MAX_LEFT)


class Returns:
    """Takes attempts back into a pool."""

    def __init__(self, broker: BrokerState, scheduler: Scheduler) -> None:
        self._state = broker
        self._scheduler = scheduler

    def take(self, worker_id: str, tasks: Iterable[TaskRecord], why: str, kind: ReturnKind) -> None:
        """Let tasks wait again, each for as long as is due; what came back too often has failed.

        Args:
            worker_id: who had them.
            why: for the task's history and for who asks how it stands.
        """
        why = why[:MAX_REASON_CHARS]
        by_pause: dict[float, list[TaskRecord]] = {}
        for task in tasks:
            history = task.remember()
            before = history.suspect_returns if kind.returned == SUSPECT else history.returns
            if before + 1 >= kind.most:
                told = f"given back {before + 1} times, the last time: {why}"[:MAX_REASON_CHARS]
                wait = Wait(MAX_RETURN_PAUSE_S * self._part())
                self._scheduler.requeue(worker_id, [task], told, is_counted=True, wait=wait)
                continue
            doublings = history.returns - kind.free
            ceiling = min(MAX_RETURN_PAUSE_S, RETURN_PAUSE_S * 2.0 ** min(doublings, 10))
            by_pause.setdefault(ceiling if doublings >= 0 else 0.0, []).append(task)
        for ceiling, again in by_pause.items():
            pause_s = ceiling * self._part() if ceiling else 0.0
            self._scheduler.requeue(worker_id, again, why, wait=Wait(pause_s, kind.returned))

    def _part(self) -> float:
        return 0.5 + self._state.draw() / 2
