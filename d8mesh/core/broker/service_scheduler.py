"""Handing placed tasks to LLM services: as soon as one has a slot for a task, and not before."""

from __future__ import annotations

from typing import Final

from d8mesh.core.broker import candidates, routing
from d8mesh.core.broker import placement as placing
from d8mesh.core.broker.estimates import Weighed
from d8mesh.core.broker.outcomes import TaskOutcomes
from d8mesh.core.broker.queue import Lane
from d8mesh.core.broker.records import Batch, TaskRecord
from d8mesh.core.broker.scheduler import RETRY_SCAN, Scheduler
from d8mesh.core.broker.service_states import (
    Flight,
    ModelState,
)
from d8mesh.core.broker.service_views import COUNTED_WAITING, ask_of, standing_of
from d8mesh.core.broker.standings import Decision, Obstacle
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.broker.worker_registry import WorkerState
from d8mesh.core.protocol.messages import Placement, Warm
from d8mesh.core.protocol.task import TaskState
from d8mesh.core.protocol.wish import INTERACTIVE_PRIORITY, Wish, parse_wish

#: Candidates that are remembered with a decision.
MAX_CANDIDATES_KEPT: Final = 8


class ServiceScheduler:
    """Assigns waiting tasks to services with room; one `assign` per wake-up of the loop."""

    def __init__(self, state: BrokerState, scheduler: Scheduler, outcomes: TaskOutcomes) -> None:
        self._state = state
        self._scheduler = scheduler
        self._outcomes = outcomes

    def look_again(self) -> None:
        """Time has passed: who was passed over may have its turn now."""
        services = self._state.services
        services.is_stirred = bool(services.types)

    def assign(self) -> None:
        """Hand out what waits for services, in the order of the queue."""
        state = self._state
        services, queue = state.services, state.queue
        if not services.types or state.is_draining or not state.task_table.queued:
            return
        lanes = [
            lane
            for key, lane in queue.lanes.items()
            if lane.mask and key.type in services.types and (lane.is_fed or self._is_moved(lane))
        ]
        services.is_stirred = False
        services.stirred.clear()
        while lanes:
            turn = queue.choose(lanes)
            if turn is None:
                break
            lane = turn.lane
            if self._give(lane, turn.priority):
                is_given = True
                queue.handed_out(1, is_aged=turn.is_aged)
            elif is_given := self._give_other(lane, turn.priority):
                queue.handed_out(1, is_aged=False)
            else:
                lane.is_fed = False
            if not is_given and self._is_full(lane):  # as it goes with this, with all alike
                lanes = [each for each in lanes if not self._is_alike(each, lane)]
            elif not is_given or not lane.mask:
                lanes.remove(lane)
        queue.drop_empty()
        self._scheduler.flush()

    def _is_moved(self, lane: Lane) -> bool:
        """Return whether something has changed at the services that a lane waits for."""
        services = self._state.services
        return services.is_stirred or not services.stirred.isdisjoint(
            candidates.concerned(services, lane.key.model)
        )

    def _is_full(self, lane: Lane) -> bool:
        """Return whether somebody may run tasks of a lane, and none of those has room now."""
        now = self._state.now
        found = candidates.concerned(self._state.services, lane.key.model)
        return bool(found) and not any(model.room(now) for model in found)

    def _is_alike(self, lane: Lane, other: Lane) -> bool:
        """Return whether what holds for a lane holds for another; then that had its look."""
        services, texts = self._state.services, (lane.key.model, other.key.model)
        one, two = (candidates.concerned(services, text) for text in texts)
        first, second = map(parse_wish, texts)
        if one is not two or (first.is_strict, first.cloud) != (second.is_strict, second.cloud):
            return False
        lane.is_fed = False
        return True

    def _give_other(self, lane: Lane, priority: int) -> bool:
        """What has its turn cannot go anywhere now: no slot shall be free for it."""
        others = (each for each in range(10, 0, -1) if each != priority and lane.mask & 1 << each)
        return any(self._give(lane, each) for each in others)

    def _give(self, lane: Lane, priority: int) -> bool:
        if self._refuse(lane, priority):
            return True
        for task in lane.retried(priority, RETRY_SCAN):
            if task.payload is None:
                self._scheduler.page_in_soon([task.batch])
            elif (taken := self._choose(lane, task.batch, task.failed_at)) is not None:
                lane.take_retried(task)
                self._place(lane, task, *taken)
                return True
        head = lane.head(priority)
        if head is None:
            return False
        if head.payloads is None:
            self._scheduler.page_in_soon(lane.upcoming(priority))
            return False
        taken = self._choose(lane, head)
        if taken is None:
            return False
        (task,) = self._state.task_table.draw(head, 1)
        run_at = head.spec.run_at
        since_at = head.at if run_at is None else max(head.at, run_at)
        self._state.metrics.queue_wait_s.fresh.append((self._state.at - since_at, 1))
        self._place(lane, task, *taken)
        if not head.fresh_count:
            lane.head(priority)
        return True

    def _refuse_too_large(self, batch: Batch, wish: Wish) -> bool:
        state = self._state
        why = routing.why_too_large(state.services, routing.Ask(wish, batch.spec.priority))
        if not why or ask_of(state, batch.spec, batch.at).is_expected:
            return False
        self._fail_waiting(batch, why)
        return True

    def _fail_waiting(self, batch: Batch, why: str) -> None:
        ids = [batch.task_id(index) for index in range(batch.count)]
        states = self._state.task_table
        waiting = [each for each in ids if states.state_of(each) is TaskState.QUEUED]
        self._outcomes.fail_for(waiting, code="task.invalid", why=why)

    def _refuse(self, lane: Lane, priority: int) -> bool:
        """Fail the next task if nobody can ever run it; return whether it was one of those."""
        state = self._state
        task = next(iter(lane.retried(priority, 1)), None)
        batch = lane.head(priority) if task is None else task.batch
        if batch is None or (not (wish := parse_wish(batch.spec.model)).models and not wish.needs):
            return False
        if wish.is_strict and self._refuse_too_large(batch, wish):
            return True
        why = candidates.why_never(state.services, wish)
        if not why or self._may_change(batch, wish):
            return False
        if placing.is_offered_by_slots(lane.key, state.registry):
            return False
        self._fail_waiting(batch, why)
        return True

    def _may_change(self, batch: Batch, wish: Wish) -> bool:
        """Return whether somebody who could run a task may be back at any moment."""
        state, services = self._state, self._state.services
        if services.gone or ask_of(state, batch.spec, batch.at).is_expected:
            return True
        # what can do what it needs has no name to be known by
        return not wish.is_strict and (state.registry.is_young or services.awaits())

    def _choose(
        self, lane: Lane, batch: Batch, failed_at: frozenset[str] = frozenset()
    ) -> tuple[ModelState, list[Weighed]] | None:
        state = self._state
        ask = ask_of(state, batch.spec, batch.at, failed_at)
        if not routing.has_room(state.services, ask, state.policy.cloud, state.now):
            return None
        choice = routing.choose(state.services, ask, state.policy.cloud, state.now)
        if choice.warmed is not None:
            self._warm(choice.warmed)
        return None if choice.taken is None else (choice.taken.model, choice.weighed)

    def _place(
        self, lane: Lane, task: TaskRecord, model: ModelState, weighed: list[Weighed]
    ) -> None:
        state, services, spec = self._state, self._state.services, task.batch.spec
        wish = parse_wish(spec.model)
        worker = model.worker()
        assert worker is not None  # a candidate without one has no room
        waiting = lane.count(1, COUNTED_WAITING)
        placement = self._placement(model, worker, waiting)
        self._scheduler.hand_placed(task, worker, placement, model.service.id)
        chosen = next(each for each in weighed if each.model is model)
        flight = Flight(
            worker, model.service.id, model.name, state.now, chosen.estimate_s,
            chosen.raw_s, chosen.is_measured, not model.is_loaded,
        )  # fmt: skip
        if not model.is_loaded:
            model.load(chosen.load_s, state.now)
        services.begin(task.id, flight)
        if model.budget is not None:
            tokens = ask_of(state, spec, task.batch.at).tokens
            model.budget.place(worker.worker_id, tokens, state.now)
        state.registry.refresh(worker)
        services.note_conversation(wish.conversation, model)
        if spec.priority >= INTERACTIVE_PRIORITY:
            services.interactive[model.plain] = state.now
        free = (None, Obstacle.HELD_BACK)  # who could have begun with it is remembered first
        nearest = sorted(
            weighed,
            key=lambda each: (each is not chosen, each.obstacle not in free, each.estimate_s),
        )
        nearest = nearest[:MAX_CANDIDATES_KEPT]
        waited_s = max(0.0, state.at - max(task.batch.at, spec.run_at or 0.0))
        decision = Decision(
            task_id=task.id, attempt=task.n, service=model.service.id, model=model.name,
            at=state.at, waited_s=waited_s,
            candidates=tuple(standing_of(each, state.now) for each in nearest),
        )  # fmt: skip
        services.note_decision(decision)

    def _warm(self, warmed: Weighed) -> None:
        model = warmed.model
        worker = model.worker()
        assert worker is not None  # or it were no candidate
        model.load(warmed.load_s, self._state.now)
        self._state.tell(worker, Warm(self._placement(model, worker, 1)))

    def _placement(self, model: ModelState, worker: WorkerState, waiting: int) -> Placement:
        """Return where a task is to run, in the words of its worker."""
        told_id = model.service.told[worker.worker_id][1].id
        return Placement(told_id, model.name, waiting, self._state.policy.options_of(model.name))
