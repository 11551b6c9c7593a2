"""Handing placed tasks to LLM services: as soon as one has a slot for a task, and not before."""

from __future__ import annotations

from typing import Final

from d8mesh.core.broker import routing
from d8mesh.core.broker.queue import Lane
from d8mesh.core.broker.records import Batch, TaskRecord
from d8mesh.core.broker.routing import Weighed
from d8mesh.core.broker.scheduler import RETRY_SCAN, Scheduler
from d8mesh.core.broker.service_views import COUNTED_WAITING, ask_of, standing_of
from d8mesh.core.broker.services import Flight, ModelState
from d8mesh.core.broker.standings import Decision
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.protocol.messages import Placement, Warm
from d8mesh.core.protocol.wish import parse_wish

#: A model that is loaded ahead must be there after its loading time so often, and this much.
WARM_FACTOR: Final = 2.0
WARM_GRACE_S: Final = 5.0
#: Candidates that are remembered with a decision.
MAX_CANDIDATES: Final = 8


class ServiceScheduler:
    """Assigns waiting tasks to services with room; one `assign` per wake-up of the loop."""

    def __init__(self, state: BrokerState, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler

    def look_again(self) -> None:
        """Time has passed: who was passed over may have its turn now."""
        services = self._state.services
        services.is_stirred = bool(services.types)

    def assign(self) -> None:
        """Hand out what waits for services, in the order of the queue."""
        state = self._state
        services, queue = state.services, state.queue
        if not services.types or state.is_draining:
            return
        lanes = [
            lane
            for key, lane in queue.lanes.items()
            if lane.mask and key.type in services.types and (services.is_stirred or lane.is_fed)
        ]
        services.is_stirred = False
        while lanes:
            turn = queue.choose(lanes)
            if turn is None:
                break
            lane = turn.lane
            is_given = self._give(lane, turn.priority)
            if not is_given and not turn.is_aged:
                is_given = any(
                    self._give(lane, lower)
                    for lower in range(turn.priority - 1, 0, -1)
                    if lane.mask & 1 << lower
                )
            if is_given:
                queue.handed_out(1, is_aged=turn.is_aged)
            else:
                lane.is_fed = False
            if not is_given or not lane.mask:
                lanes.remove(lane)
        self._scheduler.flush()

    def _give(self, lane: Lane, priority: int) -> bool:
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

    def _choose(
        self, lane: Lane, batch: Batch, failed_at: frozenset[str] = frozenset()
    ) -> tuple[ModelState, list[Weighed]] | None:
        state = self._state
        ask = ask_of(state, batch.spec, batch.at, failed_at)
        choice = routing.choose(state.services, ask, state.policy.cloud, state.now)
        if choice.warmed is not None:
            self._warm(choice.warmed)
        return None if choice.taken is None else (choice.taken.model, choice.weighed)

    def _place(
        self, lane: Lane, task: TaskRecord, model: ModelState, weighed: list[Weighed]
    ) -> None:
        state, services, spec = self._state, self._state.services, task.batch.spec
        wish = parse_wish(spec.model)
        worker = services.worker_for(model)
        assert worker is not None  # a candidate without one has no room
        waiting = lane.count(1, COUNTED_WAITING)
        options = state.policy.load_options
        placement = Placement(model.service.id, model.name, waiting, options)
        self._scheduler.hand_placed(task, worker, placement)
        chosen = next(each for each in weighed if each.model is model)
        flight = Flight(
            worker, model.service.id, model.name, state.now, chosen.estimate_s,
            chosen.raw_s, chosen.is_measured, not model.is_loaded,
        )  # fmt: skip
        services.begin(task.id, flight)
        if model.budget is not None:
            tokens = ask_of(state, spec, task.batch.at).tokens
            model.budget.place(worker.worker_id, tokens, state.now)
        state.registry.refresh(worker)
        services.note_conversation(wish.conversation, model)
        if spec.priority >= routing.INTERACTIVE_PRIORITY:
            services.interactive[model.plain] = state.now
        nearest = sorted(weighed, key=lambda each: (each is not chosen, each.estimate_s))
        nearest = nearest[:MAX_CANDIDATES]
        waited_s = max(0.0, state.at - max(task.batch.at, spec.run_at or 0.0))
        decision = Decision(
            task_id=task.id, attempt=task.n, service=model.service.id, model=model.name,
            at=state.at, waited_s=waited_s,
            candidates=tuple(standing_of(each, state.now) for each in nearest),
        )  # fmt: skip
        services.note_decision(decision)

    def _warm(self, warmed: Weighed) -> None:
        model = warmed.model
        worker = self._state.services.worker_for(model)
        if worker is None:
            return
        load_s = warmed.estimate_s - warmed.run_s
        model.warming_until = self._state.now + load_s * WARM_FACTOR + WARM_GRACE_S
        options = self._state.policy.load_options
        self._state.tell(worker, Warm(Placement(model.service.id, model.name, 1, options)))
