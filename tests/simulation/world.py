"""A seeded world in which the real brains meet drops, delays, partitions, crashes and clock jumps.

Real: `Dispatcher` with the real journal (on a scratch file, without syncs: the world itself
decides what a crash loses), `WorkerSession` and `ClientSession`. Simulated: the network, the
clocks, the handlers. Safety is checked at every step, liveness once the world is kind again.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from d8mesh.core import messages as m
from d8mesh.core.client_session import (
    Arrived,
    ClientSession,
    Lost,
    Output,
    Settled,
    Transmit,
)
from d8mesh.core.codec import decode_to_broker, decode_to_client, decode_to_worker, encode
from d8mesh.core.dispatcher import Dispatcher
from d8mesh.core.effects import Effect, Load, Loaded, Peer, Record, Send
from d8mesh.core.parcel import Parcel
from d8mesh.core.pool import Policy
from d8mesh.core.task import Cancelled, Completed, Fact, Failed
from d8mesh.core.worker_effects import (
    Abort,
    Attempt,
    Ended,
    Forget,
    Joined,
    Keep,
    Kept,
    Rebuild,
    Retire,
    Running,
    Start,
    TakeBack,
    WorkerEffect,
)
from d8mesh.core.worker_effects import Send as WorkerSend
from d8mesh.core.worker_line import Profile
from d8mesh.core.worker_session import WorkerSession
from d8mesh.edge.journal import Journal, Reader

#: Seconds of trouble, and the seconds in which a kind world must finish everything.
TROUBLE_S: Final = 30.0
KIND_S: Final = 400.0
STEP_S: Final = 0.25
#: Messages of one connection that may be under way.
ROOM: Final = 500


class Violation(AssertionError):
    """A promise was broken; the message tells the story."""


@dataclass(slots=True)
class Counts:
    """What a run went through."""

    tasks: int = 0
    executions: int = 0
    faults: Counter[str] = field(default_factory=Counter)


class World:
    """One seeded history.

    Args:
        seed: decides everything.
        folder: scratch, for the journals.
        plant: what is deliberately wrong (see `tests.planted`), or nothing.
    """

    def __init__(
        self, seed: int, folder: Path, *, plant: Callable[[World], None] | None = None
    ) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.now, self.at = 1000.0, 1_700_000_000.0
        self.counts = Counts()
        self.story: dict[str, list[str]] = {}
        self.is_kind = False
        #: task id -> what its outcome was when it was first seen anywhere
        self.seen: dict[str, tuple[int, bytes]] = {}
        #: pairs of names that cannot hear each other
        self.cut: set[tuple[str, str]] = set()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        rng = self.rng
        self.orchestrators = [
            Orchestrator(self, n, folder / f"{n}.db") for n in range(rng.choice((1, 1, 2)))
        ]
        self.workers = [SimWorker(self, n) for n in range(rng.randint(1, 3))]
        self.clients = [SimClient(self, n) for n in range(rng.randint(1, 2))]
        if plant is not None:
            plant(self)

    # ------------------------------------------------------------------ running

    def run(self) -> Counts:
        """Live through the history; return what it was.

        Raises:
            Violation: a promise was broken.
        """
        try:
            for _ in range(int(TROUBLE_S / STEP_S)):
                self._trouble()
                self._step()
            self._make_kind()
            for _ in range(int(KIND_S / STEP_S)):
                self._step()
                if all(client.is_satisfied for client in self.clients):
                    break
            self._check_end()
        finally:
            for orchestrator in self.orchestrators:
                orchestrator.close()
        return self.counts

    def after(self, pause_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._order += 1
        heapq.heappush(self._due, (self.now + pause_s, self._order, action))

    def tell(self, task_id: str, what: str) -> None:
        """Add a line to the story of a task."""
        self.story.setdefault(task_id, []).append(f"{self.now - 1000:8.2f} {what}")

    def fail(self, task_id: str, why: str) -> None:
        """A promise was broken for this task."""
        lines = "\n".join(self.story.get(task_id, ["(nothing is known of it)"]))
        raise Violation(f"seed {self.seed}: {task_id}: {why}\n{lines}")

    def carry(self, a: str, b: str, deliver: Callable[[], None]) -> None:
        """Let a message travel from `a` to `b`, or not."""
        rng = self.rng
        if (a, b) in self.cut or (b, a) in self.cut:
            self.counts.faults["cut off"] += 1
            return
        if not self.is_kind and rng.random() < 0.02:
            self.counts.faults["dropped"] += 1
            return
        pause_s = rng.random() * 0.02
        if not self.is_kind and rng.random() < 0.05:
            self.counts.faults["delayed"] += 1
            pause_s += rng.random() * 8
        self.after(pause_s, deliver)
        if not self.is_kind and rng.random() < 0.02:
            self.counts.faults["repeated"] += 1
            self.after(pause_s + rng.random() * 3, deliver)

    def _step(self) -> None:
        until = self.now + STEP_S
        while self._due and self._due[0][0] <= until:
            due, _, action = heapq.heappop(self._due)
            self._advance(max(due, self.now))
            action()
        self._advance(until)
        for orchestrator in self.orchestrators:
            orchestrator.tick()
        for worker in self.workers:
            worker.tick()
        for client in self.clients:
            client.tick()

    def _advance(self, now: float) -> None:
        self.at += now - self.now
        self.now = now

    def _trouble(self) -> None:
        """Maybe do something unkind."""
        rng, faults = self.rng, self.counts.faults
        if rng.random() < 0.4:
            rng.choice(self.clients).submit()
        if rng.random() < 0.02:
            rng.choice(self.clients).cancel()
        if rng.random() < 0.012:
            faults["broker crash"] += 1
            rng.choice(self.orchestrators).crash()
        if rng.random() < 0.02:
            faults["worker crash"] += 1
            rng.choice(self.workers).crash()
        if rng.random() < 0.02:
            faults["partition"] += 1
            names = [each.name for each in self.workers] + [each.name for each in self.clients]
            pair = (rng.choice(names), rng.choice(self.orchestrators).name)
            self.cut.add(pair)
            self.after(rng.random() * 25, lambda: self.cut.discard(pair))
        if rng.random() < 0.01:
            faults["wall clock jump"] += 1
            self.at += rng.uniform(-1e5, 1e5)  # less than what is kept
        if rng.random() < 0.01:
            faults["pause"] += 1
            rng.choice(self.orchestrators).paused_until = self.now + rng.random() * 15
        if rng.random() < 0.01:
            faults["pause"] += 1
            rng.choice(self.workers).paused_until = self.now + rng.random() * 20

    def _make_kind(self) -> None:
        self.is_kind = True
        self.cut.clear()
        for orchestrator in self.orchestrators:
            orchestrator.paused_until = 0.0
        for worker in self.workers:
            worker.paused_until = 0.0

    # ------------------------------------------------------------------- safety

    def committed(self, facts: Sequence[Fact]) -> None:
        """Facts reached the disk: no task may have two outcomes."""
        for fact in facts:
            if isinstance(fact, (Completed, Failed, Cancelled)):
                state = {Completed: 1, Failed: 2, Cancelled: 3}[type(fact)]
                for task_id, payload in zip(fact.ids, fact.payloads, strict=True):
                    self.tell(task_id, f"committed {type(fact).__name__}")
                    self.outcome(task_id, state, payload, where="on disk again")

    def outcome(self, task_id: str, state: int, payload: bytes, *, where: str) -> None:
        """An outcome was seen: it must be the one that was seen before."""
        known = self.seen.setdefault(task_id, (state, payload))
        if where == "on disk again" and known is not None and self._is_double(task_id):
            self.fail(task_id, "has two outcomes on disk")
        if known != (state, payload):
            self.fail(task_id, f"outcome changed from {known} to {(state, payload)} ({where})")
        if state == 1:
            told = msgspec.msgpack.decode(payload)
            if told != {"success": True, "output": f"done {task_id}"}:
                self.fail(task_id, f"wrong result {told}")

    def _is_double(self, task_id: str) -> bool:
        ends = ("Completed", "Failed", "Cancelled")
        lines = self.story.get(task_id, ())
        return sum(line.endswith(tuple(f"committed {e}" for e in ends)) for line in lines) > 1

    def _check_end(self) -> None:
        for client in self.clients:
            for parcel in client.parcels:
                if parcel.refusal is not None:
                    continue
                for index in range(parcel.count):
                    if not parcel.is_accepted:
                        self.fail(parcel.task_id(index), "was never acknowledged in a kind world")
                    if not parcel.states[index]:
                        self.fail(parcel.task_id(index), "is stuck: no outcome in a kind world")
                    if parcel.states[index] > m.CANCELLED_STATE:
                        self.fail(parcel.task_id(index), f"is lost: state {parcel.states[index]}")
        for orchestrator in self.orchestrators:
            orchestrator.dispatcher.check()


class Orchestrator:
    """A broker: dispatcher, journal, and connections by routing id."""

    def __init__(self, world: World, number: int, file: Path) -> None:
        self.world = world
        self.name = f"o{number}"
        self.file = file
        self.paused_until = 0.0
        self.routes: dict[bytes, Callable[[bytes], None]] = {}
        self.commits_before_sending = True
        self._crash_at: int | None = None
        self._inbox: list[tuple[bytes, bytes]] = []
        self._follow_ups: list[Effect] = []
        self._open()

    def _open(self) -> None:
        self.journal = Journal(self.file, synchronous="OFF")
        self.reader = Reader(self.file)
        policy = Policy(broker_id=self.name, mesh="m", task_timeout_s=40.0, max_attempts=6)
        restored = self.journal.restore()
        world = self.world
        self.dispatcher = Dispatcher(policy, restored, world.rng.random, now=world.now, at=world.at)
        self.life = restored.epoch

    def close(self) -> None:
        self.reader.close()
        self.journal.close()

    def crash(self) -> None:
        """Die, at once or in the middle of the next wake-up; come back a little later."""
        if self.world.rng.random() < 0.5:
            self._crash_at = self.world.rng.randint(0, 12)
        else:
            self._die()

    def _die(self) -> None:
        self._crash_at = None
        self.routes.clear()
        self._inbox.clear()
        self._follow_ups.clear()
        self.close()
        self._open()
        self.paused_until = self.world.now + self.world.rng.random() * 4

    def hear(self, routing_id: bytes, frame: bytes, life: int) -> None:
        """A frame has come in over a connection to an earlier or the current life."""
        if life == self.life and routing_id in self.routes:
            self._inbox.append((routing_id, frame))

    def tick(self) -> None:
        """One wake-up."""
        world = self.world
        if world.now < self.paused_until:
            return
        inbox, self._inbox = self._inbox, []
        effects: list[Effect] = []
        for routing_id, frame in inbox:
            message = decode_to_broker(frame)
            effects += self.dispatcher.receive(message, Peer(routing_id, "10.0.0.1"), world.now)
        effects += self.dispatcher.tick(world.now, world.at)
        self.perform(effects)
        if world.rng.random() < 0.02:
            self.dispatcher.check()

    def perform(self, effects: Sequence[Effect]) -> None:
        """Carry effects out as the broker's loop does; maybe die in the middle."""
        facts = [effect.fact for effect in effects if isinstance(effect, Record)]
        sends = [effect for effect in effects if isinstance(effect, Send)]
        steps: list[Callable[[], None]] = []
        early = [s for s in sends if not s.waits]
        late = [s for s in sends if s.waits]
        first, last = (early, late) if self.commits_before_sending else (sends, [])
        steps += [lambda s=s: self._send(s) for s in first]  # type: ignore[misc]
        if facts:
            steps.append(lambda: self._commit(facts))
        steps += [lambda s=s: self._send(s) for s in last]  # type: ignore[misc]
        for step in steps:
            if self._crash_at is not None:
                if self._crash_at == 0:
                    self._die()
                    return
                self._crash_at -= 1
            step()
        follow_ups, self._follow_ups = self._follow_ups, []
        if follow_ups:
            self.perform(follow_ups)
        for effect in effects:
            if isinstance(effect, Load):
                rows = self.reader.query(effect.what, effect.args)
                self.perform(self.dispatcher.loaded(Loaded(effect.number, rows)))

    def _commit(self, facts: Sequence[Fact]) -> None:
        self.journal.append(facts)
        self.world.committed(facts)

    def _send(self, send: Send) -> None:
        deliver = self.routes.get(send.peer.routing_id)
        if deliver is not None:
            deliver(encode(send.message))
        else:
            self._follow_ups += self.dispatcher.undelivered(send.peer, send.message)


class Wire:
    """One connection of a node to an orchestrator; useless after either side's end."""

    def __init__(
        self, world: World, node: str, orchestrator: Orchestrator, heard: Callable[[bytes], None]
    ) -> None:
        self.world, self.node, self.orchestrator, self.heard = world, node, orchestrator, heard
        self.life = orchestrator.life
        self.routing_id = world.rng.randbytes(5)
        self.is_open = True
        orchestrator.routes[self.routing_id] = self._to_node

    def send(self, frame: bytes) -> None:
        """Send to the orchestrator."""
        target = self.orchestrator
        if target.life != self.life:  # it was restarted: TCP connects anew by itself
            self.life = target.life
            target.routes[self.routing_id] = self._to_node
        life = self.life
        self.world.carry(self.node, target.name, lambda: target.hear(self.routing_id, frame, life))

    def close(self) -> None:
        self.is_open = False
        self.orchestrator.routes.pop(self.routing_id, None)

    def _to_node(self, frame: bytes) -> None:
        self.world.carry(
            self.orchestrator.name, self.node, lambda: self.heard(frame) if self.is_open else None
        )


class SimWorker:
    """A worker: brain, outbox, slots that take time, and a wire to every orchestrator."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"w{number}"
        self.paused_until = 0.0
        self.outbox: dict[bytes, Kept] = {}
        self.slots = world.rng.randint(1, 3)
        self.pace = world.rng.choice((0.1, 0.5, 2.0, 6.0))
        self._boots = 0
        self.wires: dict[str, Wire] = {}
        self._boot()

    def _boot(self) -> None:
        self._boots += 1
        me = Profile(
            mesh="m", worker_id=self.name, boot_id=f"b{self._boots}", worker_type="sim",
            machine_id=self.name, host=self.name, status_port=0, slots=self.slots,
            task_types=("echo",), models=(),
        )  # fmt: skip
        self.session = WorkerSession(me, list(self.outbox.values()))
        self.ready: list[Attempt] = []
        self.running: list[tuple[float, Running]] = []
        self.aborted: set[bytes] = set()
        self._inbox: list[tuple[str, bytes]] = []
        for orchestrator in self.world.orchestrators:
            self._dial(orchestrator)

    def _dial(self, orchestrator: Orchestrator) -> None:
        key = orchestrator.name
        old = self.wires.pop(key, None)
        if old is not None:
            old.close()
        self.wires[key] = Wire(
            self.world, self.name, orchestrator, lambda frame: self._inbox.append((key, frame))
        )
        self.perform(self.session.link_up(key, self.world.now))

    def crash(self) -> None:
        """Die with everything that is not in the outbox, and start again."""
        for wire in self.wires.values():
            wire.close()
        self.wires.clear()
        self._boot()
        self.paused_until = self.world.now + self.world.rng.random() * 5

    def tick(self) -> None:
        """One wake-up."""
        world, now = self.world, self.world.now
        if now < self.paused_until:
            return
        inbox, self._inbox = self._inbox, []
        for key, frame in inbox:
            self.perform(self.session.receive(decode_to_worker(frame), key, now))
        while self.ready and len(self.running) < self.slots:
            attempt = self.ready.pop(0)
            world.counts.executions += 1
            world.tell(attempt[4], f"{self.name} starts an attempt")
            pace = self.pace * (0.02 if world.is_kind else 1.0)
            self.running.append((now + world.rng.random() * pace, Running(attempt, now)))
        ended = [self._end(running) for until, running in self.running if until <= now]
        self.running = [each for each in self.running if each[0] > now]
        if ended:
            self.perform(self.session.finished(ended, now))
        self.perform(self.session.watch([each for _, each in self.running], now))
        self.perform(self.session.tick(now))

    def _end(self, running: Running) -> Ended:
        link, _, _, _, task_id, token, _ = running.attempt
        if token in self.aborted:
            return (link, task_id, token, -1, b"", 0.1)
        is_good = self.world.is_kind or self.world.rng.random() < 0.9
        kind = m.SUCCEEDED if is_good else m.FAILED
        told = {"success": True, "output": f"done {task_id}"}
        payload = msgspec.msgpack.encode(
            told if is_good else {"success": False, "error": "bad luck"}
        )
        self.world.tell(task_id, f"{self.name} ends it: {kind}")
        return (link, task_id, token, kind, payload, self.world.now - running.started)

    def perform(self, effects: Sequence[WorkerEffect]) -> None:
        """Do what the brain asks for."""
        for effect in effects:
            match effect:
                case WorkerSend():
                    wire = self.wires.get(effect.link)
                    if wire is not None:
                        wire.send(encode(effect.message))
                case Start():
                    self.ready += effect.attempts
                case Abort():
                    self.aborted.update(effect.tokens)
                case TakeBack():
                    mine = [a for a in self.ready if a[0] == effect.link][-effect.count :]
                    self.ready = [a for a in self.ready if a not in mine]
                    self.perform(self.session.taken_back(mine[::-1], self.world.now))
                case Keep():
                    self.outbox.update({kept.token: kept for kept in effect.results})
                case Forget():
                    for token in effect.tokens:
                        self.outbox.pop(token, None)
                case Rebuild() | Retire():
                    self._rebuild(effect.link)
                case Joined():
                    pass
                case _:
                    pass

    def _rebuild(self, key: str) -> None:
        self.perform(self.session.link_down(key, self.world.now))
        for orchestrator in self.world.orchestrators:
            if orchestrator.name == key:
                self.world.after(0.3, lambda o=orchestrator: self._dial(o))  # type: ignore[misc]


class SimClient:
    """A client: brain, parcels, one wire."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"c{number}"
        self.parcels: list[Parcel] = []
        self._next = 0
        rng = world.rng
        self._session_id = "".join(
            rng.choice("0123456789abcdefghijklmnopqrstuv") for _ in range(16)
        )
        self.session = ClientSession(self._session_id, "m", self.name)
        self._home = rng.choice(world.orchestrators)
        self._inbox: list[bytes] = []
        self._wire: Wire | None = None
        self._requests = 0
        self._dial()

    @property
    def is_satisfied(self) -> bool:
        """True when everything submitted has its outcome."""
        return all(p.refusal or (p.is_accepted and not p.missing) for p in self.parcels)

    def _dial(self) -> None:
        if self._wire is not None:
            self._wire.close()
        self._wire = Wire(self.world, self.name, self._home, self._inbox.append)
        self.perform(self.session.link_up(self.world.now))

    def submit(self) -> None:
        """Submit a few tasks."""
        rng = self.world.rng
        count = rng.randint(1, 5)
        group = m.Group("echo", rng.randint(1, 10), [b"\x80"] * count)
        parcel = Parcel(self._session_id, self._next, [group], count)
        parcel.states, parcel.payloads = bytearray(count), [None] * count
        self._next += count
        self.parcels.append(parcel)
        self.world.counts.tasks += count
        self.perform(self.session.submit(parcel, self.world.now))

    def cancel(self) -> None:
        """Ask for a task to be cancelled."""
        done = [parcel for parcel in self.parcels if parcel.is_accepted]
        if done:
            self._requests += 1
            question = m.Ask(
                self._requests, "cancel", {"id": self.world.rng.choice(done).task_id(0)}
            )
            self.perform(self.session.ask(question, self.world.now))

    def tick(self) -> None:
        """One wake-up."""
        inbox = self._inbox[:]
        self._inbox.clear()
        for frame in inbox:
            self.perform(self.session.receive(decode_to_client(frame), self.world.now))
        self.perform(self.session.tick(self.world.now))

    def perform(self, outputs: Sequence[Output]) -> None:
        """Do what the brain asks for."""
        for output in outputs:
            match output:
                case Transmit():
                    if self._wire is not None:
                        self._wire.send(encode(output.message))
                case Lost():
                    self.session.link_down()
                    self.world.after(0.3, self._dial)
                case Settled():
                    self._acknowledged(output.parcel)
                case Arrived():
                    self._arrived(output.parcel)
                case _:
                    pass

    def _acknowledged(self, parcel: Parcel) -> None:
        """What is acknowledged must be on the disk, now and for ever."""
        if parcel.refusal is not None:
            return
        for index in range(parcel.count):
            task_id = parcel.task_id(index)
            self.world.tell(task_id, "acknowledged")
            journal = self._home.journal
            if not is_on_disk(journal, task_id):
                self.world.fail(task_id, "was acknowledged and is not on disk")

    def _arrived(self, parcel: Parcel) -> None:
        for index, state in enumerate(parcel.states):
            if state in (1, 2, 3):
                payload = parcel.payloads[index] or b""
                task_id = parcel.task_id(index)
                if task_id not in self.world.seen:
                    self.world.fail(task_id, "its outcome was told before it was on disk")
                self.world.outcome(task_id, state, payload, where="told to the client")


def is_on_disk(journal: Journal, task_id: str) -> bool:
    """Return whether the journal's file holds the task."""
    row = journal._row_of(task_id[:16], int(task_id[17:]))
    found = journal._db.execute(
        "SELECT count(*) FROM batches WHERE first <= ? AND first + count > ?", (row, row)
    ).fetchall()
    return bool(found[0][0])
