"""How long those wait in vain who wait at a door: a task that nobody can do ends with the reason.

A queue is no reason: as long as somebody answers, who waits has his turn. But where every place is
away or paused, or refuses all that it is given, a caller at an open connection is told so soon,
whatever the priority. Lines of batches wait until somebody can do them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import Struct

from d8mesh.core.broker import candidates, obstacles, service_views
from d8mesh.core.broker import placement as placing
from d8mesh.core.broker.outcomes import Failure, TaskOutcomes, failure_payload
from d8mesh.core.broker.queue import LaneKey
from d8mesh.core.broker.records import Batch, TaskRecord
from d8mesh.core.broker.service_states import ModelState
from d8mesh.core.broker.standings import Obstacle, Standing
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.protocol.chat import MODEL_TYPES
from d8mesh.core.protocol.task import TaskState
from d8mesh.core.protocol.wish import parse_wish

#: So long nobody could take a task: all who may are away, or paused after failures. With the half
#: second between two looks it is shorter than the silence after which a stream of events begins
#: (`doors.llm.streamed`): so it still has a status of its own.
HOPELESS_S: Final = 7.0
#: So long all that was tried came back, and nobody was answered there: longer than a machine that
#: others fill as well takes for an answer.
UNANSWERED_S: Final = 30.0
#: Somebody is answered where an attempt has lasted so long, or ended well so short a time ago.
SERVED_S: Final = 2.0
ANSWERED_S: Final = 5.0
#: An account that allows nothing for longer than this is not waited for.
MAX_QUOTA_S: Final = 60.0
#: A look that comes so late means that the broker itself stood still: that counts for nobody.
LATE_LOOK_S: Final = 2.0

#: What ends without anybody's doing: who has it will take the task in its turn.
_GOES_BY_ITSELF: Final = frozenset(
    {
        None,
        Obstacle.FULL,
        Obstacle.LOADING,
        Obstacle.HELD_BACK,
        Obstacle.RESERVED,
        Obstacle.FAILED_BEFORE,
        Obstacle.CLOUD_OVERFLOW_ONLY,
    }
)


class Outlook(NamedTuple):
    """What tasks of one lane may hope for now."""

    #: nobody can take one: the code and the words for it; empty: somebody can
    code: str = ""
    why: str = ""
    #: somebody who may run them answers
    is_served: bool = True


class WaitingCaller(Struct):
    """Somebody who waits at a door."""

    batch: Batch
    index: int
    #: since when nobody could take the task, and since when nobody was answered (monotonic)
    hopeless_since: float | None = None
    refused_since: float | None = None
    #: the result of its last attempt, which failed
    payload: bytes = b""


class Patience:
    """Looks after those who wait at doors; one `look` per sweep."""

    def __init__(self, state: BrokerState, outcomes: TaskOutcomes) -> None:
        self._state = state
        self._outcomes = outcomes
        self._callers: dict[str, WaitingCaller] = {}
        self._looked = state.now

    def failed(self, task: TaskRecord, payload: bytes) -> None:
        """An attempt ended with this result: what its caller is told if no other is made."""
        self._take_in()
        caller = self._callers.get(task.id)
        if caller is not None:
            caller.payload = payload

    def look(self) -> None:
        """Tell those of the end who wait in vain."""
        self._take_in()
        now, gap_s = self._state.now, self._state.now - self._looked
        self._looked, is_late = now, gap_s > LATE_LOOK_S
        outlooks: dict[LaneKey, Outlook] = {}
        for task_id, caller in list(self._callers.items()):
            state = self._state.task_table.state_of(task_id)
            if state is None:
                del self._callers[task_id]
            elif is_late or state is TaskState.RUNNING or not self._is_there(caller):
                self._see_running(task_id, caller)
            else:
                key = LaneKey.of(caller.batch.spec)
                if key not in outlooks:
                    outlooks[key] = self._outlook(key, caller.batch)
                self._judge(task_id, caller, outlooks[key])

    # ------------------------------------------------------------------------- helpers

    def _take_in(self) -> None:
        for batch in self._state.waited_for:
            for index in range(batch.count):
                self._callers[batch.task_id(index)] = WaitingCaller(batch, index)
        self._state.waited_for.clear()

    def _is_there(self, caller: WaitingCaller) -> bool:
        """Return whether a client awaits the end of its task, and it is time to judge."""
        state, task_id = self._state, caller.batch.task_id(caller.index)
        if state.registry.is_young and caller.batch.at <= state.started_at:
            return False  # the machines that had its model come back
        if state.batch_watchers.get(caller.batch.order) in state.clients:
            return True
        return task_id in state.task_watchers or task_id in state.listeners

    def _see_running(self, task_id: str, caller: WaitingCaller) -> None:
        """Its task runs, or nobody awaits it; what has just begun may come back at once."""
        caller.hopeless_since = None
        flight = self._state.services.flights.get(task_id)
        if flight is None or self._state.now - flight.since >= SERVED_S:
            caller.refused_since = None

    def _judge(self, task_id: str, caller: WaitingCaller, outlook: Outlook) -> None:
        now = self._state.now
        if not outlook.code:
            caller.hopeless_since = None
        elif caller.hopeless_since is None:
            caller.hopeless_since = now
        if outlook.is_served:
            caller.refused_since = None
        elif caller.refused_since is None:
            caller.refused_since = now
        if caller.hopeless_since is not None and now - caller.hopeless_since >= HOPELESS_S:
            self._end(task_id, caller, outlook.code, outlook.why)
        elif caller.refused_since is not None and now - caller.refused_since >= UNANSWERED_S:
            task = self._state.task_table.tasks.get(task_id)
            told = "" if task is None or task.history is None else task.history.last_return
            why = f"all that have the model are busy, and answered nobody for {UNANSWERED_S:g} s"
            self._end(task_id, caller, "backend.busy", f"{why}: {told}" if told else why)

    def _end(self, task_id: str, caller: WaitingCaller, code: str, why: str) -> None:
        payload = caller.payload or failure_payload(why, code)
        del self._callers[task_id]
        self._outcomes.fail("", [task_id], [payload], why=Failure.of(payload).text)

    def _outlook(self, key: LaneKey, batch: Batch) -> Outlook:
        state = self._state
        if key.type not in MODEL_TYPES:
            serving = state.registry.serving.get(key.type, {}).values()
            if any(placing.can_run(worker, key, state.registry) for worker in serving):
                return Outlook()
            return Outlook("backend.unavailable", placing.why_waiting(key, state.registry))
        if placing.is_offered_by_slots(key, state.registry):
            return Outlook()
        found = service_views.standings(state, batch.spec, accepted_at=batch.at)
        if any(_is_passing(each) for each in found):
            models = candidates.concerned(state.services, key.model)
            return Outlook(is_served=any(_is_served(model, state.now) for model in models))
        is_used_up = any(each.obstacle is Obstacle.BUDGET_USED for each in found)
        why = obstacles.reason(parse_wish(batch.spec.model), found)
        return Outlook("backend.limit" if is_used_up else "backend.unavailable", why)


def _is_passing(standing: Standing) -> bool:
    """Return whether what stands against a task at a place goes by itself, and soon."""
    if standing.obstacle is Obstacle.BUDGET_USED:
        return standing.until_s is not None and standing.until_s <= MAX_QUOTA_S
    return standing.obstacle in _GOES_BY_ITSELF


def _is_served(model: ModelState, now: float) -> bool:
    """Return whether a model answers somebody, or is about to."""
    if model.is_loading(now) or now - model.answered_at < ANSWERED_S:
        return True
    flights = model.service.flights.values()
    return any(each.model == model.name and now - each.since >= SERVED_S for each in flights)
