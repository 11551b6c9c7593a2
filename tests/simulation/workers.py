"""Workers of the simulation: the real brain, an outbox, and slots that take time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_worker, encode
from d8mesh.core.worker.broker_session import Profile
from d8mesh.core.worker.effects import (
    DROPPED,
    UNAVAILABLE,
    Abort,
    Attempt,
    Ended,
    Forget,
    Keep,
    KeptResult,
    Rebuild,
    Retire,
    Running,
    SendOn,
    Start,
    StartPlaced,
    TakeBack,
    WarmUp,
    WorkerEffect,
)
from d8mesh.core.worker.session import WorkerSession
from tests.simulation.wire import Wire

if TYPE_CHECKING:
    from tests.simulation.orchestrator import Orchestrator
    from tests.simulation.world import World


class SimWorker:
    """A worker with a wire to every orchestrator. It may die at any effect."""

    def __init__(self, world: World, number: int) -> None:
        rng = world.rng
        self.world = world
        self.name = f"w{number}"
        self.paused_until = 0.0
        self.outbox: dict[bytes, KeptResult] = {}
        #: the types that services answer, and those that it reaches: set by `offer`
        self._offered: tuple[tuple[str, ...], tuple[m.OfferedService, ...]] = ((), ())
        self._slots = rng.randint(1, 3)
        self._pace_s = rng.choice((0.05, 0.5, 2.0, 6.0))
        self._boots = 0
        self._steps_to_live: int | None = None
        self._wires: dict[str, Wire] = {}
        self._boot()

    def _boot(self) -> None:
        self._boots += 1
        self._steps_to_live = None
        me = Profile(
            mesh="m", worker_id=self.name, boot_id=f"b{self._boots}", worker_type="sim",
            machine_id=self.name, host=self.name, status_port=0, slots=self._slots,
            task_types=("echo",), models=(),
        )  # fmt: skip
        self.session = WorkerSession(me, list(self.outbox.values()))
        self._ready: list[Attempt] = []
        self._running: list[tuple[float, Running]] = []
        self._aborted: set[bytes] = set()
        self._inbox: list[tuple[str, bytes]] = []
        self.session.services.offer(*self._offered, self.world.now)
        for orchestrator in self.world.orchestrators:
            self._dial(orchestrator, self._boots)

    def offer(self, types: Sequence[str], services: Sequence[m.OfferedService]) -> None:
        """Reach these services from now on, and answer these types with them."""
        self._offered = (tuple(types), tuple(services))
        self.session.services.offer(*self._offered, self.world.now)

    def _dial(self, orchestrator: Orchestrator, boot: int) -> None:
        if boot != self._boots:
            return  # of a life that is over
        key = orchestrator.name
        old = self._wires.pop(key, None)
        if old is not None:
            old.close()
        self._wires[key] = Wire(
            self.world, self.name, orchestrator, lambda frame: self._inbox.append((key, frame))
        )
        self._perform(self.session.link_up(key, self.world.now))

    def crash(self) -> None:
        """Die, at once or at some effect to come."""
        if self.world.rng.random() < 0.5:
            self._die()
        else:
            self._steps_to_live = self.world.rng.randint(0, 12)

    def _die(self) -> None:
        self.world.safety.causes.died(self.name)
        for wire in self._wires.values():
            wire.close()
        self._wires.clear()
        self._boot()
        self.paused_until = self.world.now + self.world.rng.random() * 15

    def tick(self) -> None:
        """One wake-up."""
        world, now = self.world, self.world.now
        if now < self.paused_until:
            return
        inbox, self._inbox = self._inbox, []
        for key, frame in inbox:
            self._perform(self.session.receive(decode_to_worker(frame), key, now))
        self._start()
        ended = [self._end(running) for until, running in self._running if until <= now]
        self._running = [each for each in self._running if each[0] > now]
        if self.session.services.due <= now:  # told before what failed there is given back
            self._perform(self.session.tick(now))
        if ended:
            self._perform(self.session.finished(ended, now))
        running = [each for _, each in self._running]
        overran = (e.attempt.token for e in running if now - e.started > e.attempt.timeout_s)
        world.safety.causes.broken.update(overran)
        self._perform(self.session.watch(running, now))
        self._perform(self.session.tick(now))
        if self._steps_to_live is not None and self._steps_to_live < 0:
            world.counts.faults["worker died at an effect"] += 1
            self._die()

    def _start(self) -> None:
        while self._ready and self._in_slots() < self._slots:
            self._begin(self._ready.pop(0))

    def _in_slots(self) -> int:
        return sum(running.attempt.placement is None for _, running in self._running)

    def _begin(self, attempt: Attempt) -> None:
        world = self.world
        world.counts.executions += 1
        world.safety.note(attempt.id, f"{self.name} starts an attempt")
        takes_s = world.rng.random() * (0.1 if world.is_kind else self._pace_s)
        if not world.is_kind and world.rng.random() < 0.01:
            world.counts.faults["handler hangs"] += 1
            takes_s += 60.0
        self._running.append((world.now + takes_s, Running(attempt, world.now)))

    def _end(self, running: Running) -> Ended:
        attempt = running.attempt
        link, task_id, token = attempt.link, attempt.id, attempt.token
        rng, world = self.world.rng, self.world
        lasted_s = world.now - running.started
        if token in self._aborted:
            self._aborted.discard(token)
            return (link, task_id, token, DROPPED, b"", lasted_s)
        luck = 0.0 if world.is_kind else rng.random()
        if luck > 0.98:
            self._pause(attempt.placement)
            return (link, task_id, token, UNAVAILABLE, b"busy", lasted_s)
        if luck > 0.9:
            kind = m.REFUSED if luck > 0.97 else m.FAILED
            result = msgspec.msgpack.encode({"success": False, "error": "bad luck"})
            world.safety.causes.broken.add(token)
        else:
            kind, result = m.SUCCEEDED, self._result(attempt.payload)
            world.safety.produced.add((task_id, result))
        world.safety.note(task_id, f"{self.name} ends it: {('failed', 'done', 'refused')[kind]}")
        return (link, task_id, token, kind, result, lasted_s)

    def _pause(self, placement: m.Placement | None) -> None:
        """A service could not: its model is paused, and well again after a while."""
        if placement is not None:
            self._measured(placement, m.OfferedModel(placement.model, paused="busy"))
            self._load(placement)

    def _load(self, placement: m.Placement) -> None:
        """Have a model loaded after a while, and well."""
        loaded = m.OfferedModel(placement.model, is_loaded=True, slots=2)
        boot = self._boots

        def tell() -> None:
            if boot == self._boots:
                self._measured(placement, loaded)

        self.world.after(self.world.rng.random() * 5, tell)

    def _measured(self, placement: m.Placement, model: m.OfferedModel) -> None:
        self.session.services.measured(placement.service, [model], self.world.now)

    def _result(self, payload: bytes) -> bytes:
        output = msgspec.msgpack.decode(payload)
        return msgspec.msgpack.encode({"success": True, "output": output, "by": self.name})

    def _perform(self, effects: Sequence[WorkerEffect]) -> None:
        """Do what the brain asks for, as far as its life goes."""
        for effect in effects:
            if self._steps_to_live is not None:
                self._steps_to_live -= 1
                if self._steps_to_live < 0:
                    return
            self._do(effect)

    def _do(self, effect: WorkerEffect) -> None:
        match effect:
            case SendOn():
                wire = self._wires.get(effect.link)
                self.world.safety.causes.says(self.name, effect.message)
                if wire is not None:
                    wire.send(encode(effect.message))
            case Start() | StartPlaced():
                self._take(effect)
            case WarmUp():
                self._load(effect.placement)
            case Abort():
                self._aborted.update(effect.tokens)
                # A handler that hangs notices that it is cancelled.
                self._running = [
                    (self.world.now if running.attempt.token in self._aborted else until, running)
                    for until, running in self._running
                ]
            case TakeBack():
                self._take_back(effect)
            case Keep() | Forget():
                self._store(effect)
            case Rebuild():
                self._rebuild(effect.link)
            case Retire():
                self.world.safety.fail(self.name, "two links to one orchestrator")
            case _:
                pass

    def _store(self, effect: Keep | Forget) -> None:
        if isinstance(effect, Keep):
            self.outbox.update({kept.token: kept for kept in effect.results})
        else:
            for token in effect.tokens:
                self.outbox.pop(token, None)

    def _take(self, effect: Start | StartPlaced) -> None:
        if isinstance(effect, Start):
            self._ready += effect.attempts
        else:
            for attempt in effect.attempts:
                self._begin(attempt)

    def _take_back(self, effect: TakeBack) -> None:
        mine = [a for a in self._ready if a.link == effect.link]
        mine = mine[max(0, len(mine) - effect.count) :] if effect.count else []
        tokens = {attempt.token for attempt in mine}
        self._ready = [attempt for attempt in self._ready if attempt.token not in tokens]
        self._aborted -= tokens
        self._perform(self.session.taken_back(mine[::-1], self.world.now))

    def _rebuild(self, key: str) -> None:
        wire = self._wires.pop(key, None)
        if wire is not None:
            wire.close()
        self._perform(self.session.link_down(key, self.world.now))
        boot = self._boots
        for orchestrator in self.world.orchestrators:
            if orchestrator.name == key:
                self.world.after(0.3, partial(self._dial, orchestrator, boot))
