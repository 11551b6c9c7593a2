"""A broker of the simulation: the real dispatcher and journal, and a loop that may die anywhere."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from d8mesh.core.broker.deferral import DEFERRAL_S, Deferral
from d8mesh.core.broker.effects import (
    Drop,
    Effect,
    KeepMembers,
    Load,
    Loaded,
    Peer,
    Record,
    Send,
    UseView,
)
from d8mesh.core.broker.members_view import KeptMember, Knock
from d8mesh.core.broker.state import Policy
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_broker, encode
from d8mesh.core.protocol.membership import fingerprint
from d8mesh.core.protocol.task import Fact, TaskState
from d8mesh.edge.sqlite import Journal
from tests.core.invariants import check, check_placed
from tests.simulation.people import PERSON, key_of
from tests.simulation.recording import Recording
from tests.simulation.safety import Owed

if TYPE_CHECKING:
    from tests.simulation.world import World


#: Of all crashes: at once, and in the middle of the next commit; the rest at some effect.
AT_ONCE: Final = 0.3
TORN: Final = 0.2
#: Of all commits: with these the assignments that have waited are due.
DUE: Final = 0.3
#: Where all nodes connect from, and the session of the person.
ADDRESS: Final = "10.0.0.1"
PERSON_SESSION: Final = "p" * 16
#: A disk writes this much or nothing.
SECTOR_BYTES: Final = 512


class Died(Exception):
    """The process ends here."""


class Orchestrator:
    """A broker: dispatcher, journal, and connections by routing id.

    A crash loses what was not committed, and may tear the commit that is being written.
    """

    def __init__(self, world: World, number: int, file: Path) -> None:
        rng = world.rng
        self.world = world
        self.name = f"o{number}"
        self.paused_until = 0.0
        self.routes: dict[bytes, Callable[[bytes], None]] = {}
        #: the proven key of each connection
        self.keys: dict[bytes, bytes] = {}
        #: of the members: how they are let in, and their file
        self._needs_approval = world.people.needs_approval()
        self._kept: list[KeptMember] = []
        self._knocks: list[Knock] = []
        self._asked = 0
        #: what a plant turns off: see `perform`
        self.commits_before_sending = True
        self.life = 0
        self._file = file
        self._payload_memory_bytes = rng.choice((100, 10**6))
        self._policy = Policy(
            broker_id=self.name,
            mesh="m",
            task_timeout_s=rng.choice((10.0, 40.0)),
            polling_timeout_s=15.0,
            max_attempts=rng.choice((3, 6)),
            retention_count=rng.choice((20, 10**6)),
        )
        #: how long after it was begun a commit is durable, as across a network
        self.latency_s = 0.0
        self._steps_to_live: int | None = None
        self._is_to_tear = False
        #: what a crash in the middle of a commit left of the files
        self._torn: dict[Path, bytes] = {}
        self._inbox: list[tuple[bytes, bytes]] = []
        #: what is owed for results by (routing id, number), and for reports by (…, question)
        self._owed: dict[tuple[bytes, int], Owed] = {}
        self._owed_answers: dict[tuple[bytes, int], Owed] = {}
        self._open()

    def _open(self) -> None:
        world = self.world
        self.journal = Journal(self._file, synchronous="OFF")
        self._deferral, self._deferral_now = Deferral(), 0.0
        #: commits under way: when they are durable, and their facts
        self._in_flight: deque[tuple[float, list[Fact]]] = deque()
        self._begun = 0
        #: the commits that are waited for, the time of the wake-up, and what waits
        self._held: deque[tuple[int, float, list[Send | Load]]] = deque()
        restored = self.journal.restore()
        self.life = restored.epoch
        start = (self._policy, restored, world.now, world.at)
        joining = {
            "needs_approval": self._needs_approval,
            "own": {PERSON, *map(key_of, world.trusted)},
            "kept": list(self._kept),
        }
        self._recording = Recording(start, world.rng.random, self._payload_memory_bytes, joining)
        self.dispatcher = self._recording.brain
        self._view = self.dispatcher.state.members.view
        world.safety.restored(self.dispatcher)

    def close(self) -> None:
        """Let the files go; what the brain did in this life can be replayed."""
        self.journal.close()
        try:
            self._recording.prove()
        except AssertionError as error:
            self.world.safety.fail(self.name, f"a replay comes to something else: {error}")

    def crash(self) -> None:
        """Die, at once, in the middle of a commit or at some effect; be back a little later."""
        how = self.world.rng.random()
        if how < AT_ONCE:
            self._die()
        elif how < AT_ONCE + TORN:
            self._is_to_tear = True
        else:
            self._steps_to_live = self.world.rng.randint(0, 30)

    def _die(self) -> None:
        self._steps_to_live, self._is_to_tear = None, False
        self.routes.clear()
        self.keys.clear()
        self._inbox.clear()
        self._knocks.clear()
        self._owed.clear()
        self._owed_answers.clear()
        self.close()
        for file, content in self._torn.items():
            file.write_bytes(content)
        self._torn.clear()
        self._open()
        self.paused_until = self.world.now + self.world.rng.random() * 4

    def hear(self, routing_id: bytes, frame: bytes, life: int) -> None:
        """A frame has come in over a connection to an earlier or the current life."""
        if life != self.life or routing_id not in self.routes:
            return
        key = self.keys[routing_id]
        code = self._view.refusal_of_key(key)
        if code:  # the gate is asked as a connection is made; one that is let in stays
            self._knocks.append(Knock(key, ADDRESS, code))
        else:
            self._inbox.append((routing_id, frame))

    def change(self, action: m.MemberChange, key: bytes) -> bool:
        """Have a person change a member, if anybody knows it; return whether that was done."""
        members, now = self.dispatcher.state.members, self.world.now
        if now < self.paused_until or not (key in members.by_key or key in members.waiting):
            return False
        self._asked += 1
        person = Peer(b"person", "127.0.0.1", PERSON)
        said = (
            m.ClientHello(1, "m", PERSON_SESSION, "person"),
            m.ChangeMembers(self._asked, action, fingerprint(key)),
        )
        try:
            for message in said:
                self.perform(self._recording.call("receive", message, person, now))
        except Died:
            self.world.counts.faults["broker died at an effect"] += 1
            self._die()
        return True

    def tick(self) -> None:
        """One wake-up."""
        world = self.world
        if world.now < self.paused_until:
            return
        inbox, self._inbox = self._inbox, []
        effects: list[Effect] = []
        world.safety.causes.ticked(self.name)
        try:
            effects += self._settle()
            knocks, self._knocks = self._knocks, []
            for knock in knocks:
                effects += self._recording.call("knocked", knock, world.now)
            for routing_id, frame in inbox:
                message = decode_to_broker(frame)
                peer = Peer(routing_id, ADDRESS, self.keys.get(routing_id))
                self._listen(message, peer)
                effects += self._recording.call("receive", message, peer, world.now)
            effects += self._recording.call("tick", world.now, world.at)
            self.perform(effects)
        except Died:
            world.counts.faults["broker died at an effect"] += 1
            self._die()
        if world.rng.random() < 0.05:
            check(self.dispatcher)

    def _listen(self, message: m.ToBroker, peer: Peer) -> None:
        """Note who was heard, and what will be owed for what was said."""
        causes, worker = (
            self.world.safety.causes,
            self.dispatcher.state.registry.by_peer(peer),
        )
        match message:
            case m.WorkerHello():
                claims = map(
                    self.dispatcher.state.signer.check, message.held_tokens, message.held_ids
                )
                held = {
                    task_id: claim.n
                    for task_id, claim in zip(message.held_ids, claims, strict=True)
                    if claim is not None
                }
                causes.heard(self.name, message.worker_id)
                causes.joined(self.name, message.worker_id, message.boot_id, held)
                return
            case m.Results():
                self._owed[peer.routing_id, message.seq] = self._owed_for(message)
            case m.Query(what="poll.report", args=args):
                self._owed_answers[peer.routing_id, message.request] = self._owed_report(args)
            case _:
                pass
        if worker is not None and not isinstance(message, m.Goodbye):
            causes.heard(self.name, worker.worker_id)

    def _owed_for(self, message: m.Results) -> Owed:
        """Return what must be on disk before these results are acknowledged.

        An assignment may go before its task's commit: after a crash in between its result comes to
        a broker that does not know the task, drops it, and owes nothing for it, though the submit
        may be said again a moment later. Of what is stale only a success of a task that is not
        fenced is owed.
        """
        task_table, owed = self.dispatcher.state.task_table, Owed()
        for task_id, token, kind in zip(message.ids, message.tokens, message.kinds, strict=True):
            task = task_table.tasks.get(task_id)
            is_current = task is not None and task.attempt.token == token
            self._owe(owed, task_id, is_success=kind == m.SUCCEEDED, is_current=is_current)
        return owed

    def _owed_report(self, args: dict[str, object]) -> Owed:
        """Return what must be on disk before a polling worker is thanked for its report."""
        task_id, owed = str(args["task_id"]), Owed()
        task = self.dispatcher.state.task_table.tasks.get(task_id)
        is_current = task is not None and task.worker_id == args["worker_id"]
        self._owe(owed, task_id, is_success=args["is_success"] is True, is_current=is_current)
        return owed

    def _owe(self, owed: Owed, task_id: str, *, is_success: bool, is_current: bool) -> None:
        task_table, safety = self.dispatcher.state.task_table, self.world.safety
        task, found = task_table.tasks.get(task_id), task_table.find(task_id)
        is_current = is_current and task is not None and task.state is TaskState.RUNNING
        is_fenced = found[0].spec.is_fenced if found else task_id in safety.fenced
        is_known = found is not None or task_id in safety.accepted
        if is_success and is_known and (is_current or not is_fenced):
            owed.outcomes.append(task_id)
        elif is_current:
            owed.moves[task_id] = safety.moves[task_id]

    def perform(self, effects: Sequence[Effect]) -> None:
        """Carry effects out as the broker's loop does.

        Raises:
            Died: a crash was due at one of them.
        """
        facts = [effect.fact for effect in effects if isinstance(effect, Record)]
        sends = [effect for effect in effects if isinstance(effect, Send)]
        for send in sends:
            if isinstance(send.message, m.Placed):
                check_placed(self.dispatcher.state, send.message)
        follow_ups: list[Effect] = []
        for send in sends:
            if not send.waits or not self.commits_before_sending:
                follow_ups += self._send(send)
        if facts:
            self._in_flight.append((self.world.now + self.latency_s, facts))
            self._begun += 1
        held = [each for each in sends if each.waits and self.commits_before_sending]
        loads = [effect for effect in effects if isinstance(effect, Load)]
        self._held.append((self._begun, self.world.now, [*held, *loads]))
        for effect in effects:
            follow_ups += self._perform_rare(effect)
        follow_ups += self._settle()
        if follow_ups:
            self.perform(follow_ups)

    def _perform_rare(self, effect: Effect) -> list[Effect]:
        match effect:
            case KeepMembers():
                self._live()
                self._kept = effect.members
                return self._recording.call("kept", effect, "")
            case UseView():
                self._view = effect.view
            case Drop(peer):
                self.routes.pop(peer.routing_id, None)
            case _:
                pass
        return []

    def _settle(self) -> list[Effect]:
        """Commit what is due, and go on with what waited for that."""
        while self._in_flight and self._in_flight[0][0] <= self.world.now:
            self._commit(self._in_flight.popleft()[1])
        confirmed = self._begun - len(self._in_flight)
        follow_ups: list[Effect] = []
        while self._held and self._held[0][0] <= confirmed:
            for each in self._held.popleft()[2]:
                if isinstance(each, Send):
                    follow_ups += self._send(each)
                    continue
                self._live()
                answer = self.journal.ask(each.question)
                follow_ups += self._recording.call("loaded", Loaded(each.number, answer))
        since = self._held[0][1] if self._held else math.inf
        if since != self.dispatcher.state.unconfirmed_since:
            self._recording.call("set_unconfirmed", since)
        return follow_ups

    def _live(self) -> None:
        if self._steps_to_live is not None:
            if self._steps_to_live == 0:
                raise Died
            self._steps_to_live -= 1

    def _commit(self, facts: Sequence[Fact]) -> None:
        self._live()
        if self._is_to_tear:
            self._tear(facts)
            raise Died
        if self.world.rng.random() < DUE:
            self._deferral_now += DEFERRAL_S
        self.journal.append(self._deferral.due(facts, self._deferral_now))
        self.world.safety.committed(self.name, facts)
        self._live()

    def _tear(self, facts: Sequence[Fact]) -> None:
        """Write a commit of which the disk gets only a part: nothing of it may be seen again."""
        log = self._file.with_name(self._file.name + "-wal")
        file_before, before = self._file.read_bytes(), log.read_bytes()
        self.journal.append(self._deferral.due(facts, self._deferral_now))
        after = log.read_bytes()
        if self._file.read_bytes() != file_before or after == before:
            self.world.safety.committed(self.name, facts)  # moved over after it was whole, or empty
            return
        before = before[: len(after)].ljust(len(after), b"\0")
        # not the first: SQLite syncs a new head of the log before what follows it
        sectors = range(SECTOR_BYTES, len(after), SECTOR_BYTES)
        new = [
            at for at in sectors if before[at : at + SECTOR_BYTES] != after[at : at + SECTOR_BYTES]
        ]
        lost = self.world.rng.choice(new)  # this sector, and some of those after it
        torn = bytearray(after)
        for at in new:
            if at == lost or (at > lost and self.world.rng.random() < 0.5):
                torn[at : at + SECTOR_BYTES] = before[at : at + SECTOR_BYTES]
        self._torn = {self._file: file_before, log: bytes(torn)}
        self.world.counts.faults["commits torn"] += 1

    def _send(self, send: Send) -> list[Effect]:
        self._live()
        owed: list[Owed | None] = [*self._owed_with(send)]
        for each in owed or [None]:
            self.world.safety.told(self.name, send.message, each)
        deliver = self.routes.get(send.peer.routing_id)
        if deliver is None:
            return self._recording.call("undelivered", send.peer, send.message)
        deliver(encode(send.message))
        return []

    def _owed_with(self, send: Send) -> list[Owed]:
        """Return what this message says is on disk."""
        routing_id = send.peer.routing_id
        owed: list[Owed | None]
        match send.message:
            case m.Received(seq=seq):
                owed = [self._owed.pop((routing_id, seq), None)]
            case m.Work(received=received):
                owed = [self._owed.pop((routing_id, seq), None) for seq in received]
            case m.Answer(request=request):
                owed = [self._owed_answers.pop((routing_id, request), None)]
                owed = owed if not send.message.code else []
            case _:
                owed = []
        return [each for each in owed if each is not None]
