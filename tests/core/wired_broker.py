"""A dispatcher by itself: messages in through the codec, effects looked at, no sockets.

Facts are kept and folded into a second task table, which must agree with the first; questions
to the journal are answered by a real one in memory-sized files when a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from d8mesh.core.broker.deferral import Deferral
from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.effects import (
    Drop,
    Effect,
    KeepMembers,
    Load,
    Loaded,
    Notice,
    Peer,
    Record,
    Send,
    UseView,
)
from d8mesh.core.broker.members import Members
from d8mesh.core.broker.members_view import KeptMember, MembersView
from d8mesh.core.broker.state import Policy
from d8mesh.core.broker.store import Restored
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_broker, encode
from d8mesh.core.protocol.task import Fact
from d8mesh.edge.sqlite import Journal
from tests.chaos.verdict import overlaps_in
from tests.core.invariants import check, check_placed

S = "0123456789abcdef"
START_AT = 1_000_000.0
_M = TypeVar("_M", bound=m.Message)


def result(output: object = None) -> bytes:
    return msgspec.msgpack.encode({"success": True, "output": output})


def failure(error: str) -> bytes:
    return msgspec.msgpack.encode({"success": False, "error": error})


class WiredBroker:
    """One dispatcher with a real journal, a clock in hand, and everything that it sent."""

    def __init__(self, folder: Any, *, synchronous: str = "FULL", **policy: Any) -> None:
        self.folder = folder
        self._synchronous = synchronous
        self.policy = policy
        self.now, self.at = 100.0, START_AT
        self.draw: Callable[[], float] = lambda: 0.5
        self.facts: list[Fact] = []
        self.sent: list[tuple[Peer, m.Message, bool]] = []
        self.seq = 0
        self._n = 0
        #: what `Members` is made with, the file of members, and why it cannot be written
        self.joining: dict[str, Any] = policy.pop("joining", {})
        self.kept: list[KeptMember] = []
        self.disk_trouble = ""
        self.view = MembersView()
        self.dropped: list[Peer] = []
        self.notices: list[Notice] = []
        self._open()

    def _open(self) -> None:
        self.journal = Journal(self.folder / "journal.db", synchronous=self._synchronous)
        self.deferral = Deferral()
        restored: Restored = self.journal.restore()
        policy = Policy(broker_id=self.journal.broker_id, mesh="m", **self.policy)
        self.dispatcher = Dispatcher(
            policy,
            restored,
            lambda: self.draw(),
            members=Members(kept=self.kept, **self.joining),
            now=self.now,
            at=self.at,
        )
        self.view = self.dispatcher.state.members.view
        self.state = self.dispatcher.state
        self.task_table = self.state.task_table

    def close(self) -> None:
        self.journal.append(self.deferral.rest())
        self.journal.close()
        assert overlaps_in(self.folder / "journal.db") == 0, "a task has two outcomes"

    def restart(self) -> None:
        """Kill the broker and start it again on the same file."""
        self.close()
        self.sent.clear()
        self._open()
        check(self.dispatcher)

    # ------------------------------------------------------------------ in

    def say(self, peer: Peer, message: m.Message) -> None:
        """Send a message, let the loop go round once, check the invariants."""
        received = self.dispatcher.receive(decode_to_broker(encode(message)), peer, self.now)
        self.perform([*received, *self.dispatcher.tick(self.now, self.at)])
        check(self.dispatcher)

    def pass_time(self, seconds: float, *, step: float = 0.4) -> None:
        """Let time pass in steps, with a tick after each."""
        until = self.now + seconds
        while self.now < until - 1e-9:
            taken = min(step, until - self.now)
            self.now += taken
            self.at += taken
            self.perform(self.dispatcher.tick(self.now, self.at))
        check(self.dispatcher)

    def perform(self, effects: Sequence[Effect]) -> None:
        facts = [effect.fact for effect in effects if isinstance(effect, Record)]
        self.facts += facts
        if facts:
            self.journal.append(self.deferral.due(facts, self.now))
        for effect in effects:
            if isinstance(effect, Send):
                encode(effect.message)
                if isinstance(effect.message, m.Placed):
                    check_placed(self.state, effect.message)
                self.sent.append((effect.peer, effect.message, effect.waits))
            elif isinstance(effect, KeepMembers):
                if not self.disk_trouble:
                    self.kept = effect.members
                self.perform(self.dispatcher.kept(effect, self.disk_trouble))
            elif isinstance(effect, UseView):
                self.view = effect.view
            elif isinstance(effect, Drop):
                self.dropped.append(effect.peer)
            elif isinstance(effect, Notice):
                self.notices.append(effect)
            elif isinstance(effect, Load):
                answer = self.journal.ask(effect.question)
                self.perform(self.dispatcher.loaded(Loaded(effect.number, answer)))
                self.perform(self.dispatcher.tick(self.now, self.at))

    # ----------------------------------------------------------------- out

    def got(self, peer: Peer, kind: type[_M]) -> list[_M]:
        """Return, and forget, the messages of one kind that a peer was sent."""
        mine = [each for each in self.sent if each[0] == peer and isinstance(each[1], kind)]
        self.sent = [each for each in self.sent if each not in mine]
        return [each[1] for each in mine if isinstance(each[1], kind)]

    def work(self, peer: Peer) -> dict[str, bytes]:
        """Return task id -> token of what a worker was handed since the last call."""
        return {
            task_id: token
            for message in self.got(peer, m.Work)
            for group in message.groups
            for task_id, token in zip(group.ids, group.tokens, strict=True)
        }

    # -------------------------------------------------------------- people

    def worker(self, name: str, *, types: Sequence[str] = ("echo",), **given: Any) -> Peer:
        """Let a worker join."""
        given.setdefault("address", "10.0.0.1")
        peer = self.peer(f"r-{name}", given.pop("address"), given.pop("key", None))
        self.say(peer, hello(name, types, **given))
        return peer

    def peer(self, name: str, address: str = "10.0.0.1", key: bytes | None = None) -> Peer:
        """Return a connection that has said nothing yet."""
        return Peer(f"{name}-{self._next()}".encode(), address, key)

    def client(
        self,
        session: str = S,
        *,
        takes_streams: bool = False,
        key: bytes | None = None,
        proof: bytes = b"",
    ) -> Peer:
        """Let a client join."""
        peer = self.peer(f"c-{session}", "10.0.0.9", key)
        self.say(peer, m.ClientHello(1, "m", session, "pc", takes_streams, proof))
        return peer

    def submit(self, client: Peer, count: int = 1, kind: str = "echo", **options: Any) -> list[str]:
        """Submit tasks and return their ids; the answer stays to be looked at."""
        first = self._next_counter(count)
        session = options.pop("session", S)
        key = {
            k: options.pop(k)
            for k in ("key", "digest", "is_watched", "is_listened")
            if k in options
        }
        payloads = options.pop("payloads", [b"\x80"] * count)
        group = m.Group(kind, options.pop("priority", 5), payloads, **options)
        self.seq += 1
        self.say(client, m.Submit(self.seq, session, first, [group], **key))
        return [f"{session}-{first + n}" for n in range(count)]

    def finish(
        self, worker: Peer, held: dict[str, bytes], kind: int = m.SUCCEEDED, *, window: int = 4
    ) -> None:
        """Report all of these attempts with the same end."""
        payload = result() if kind == m.SUCCEEDED else failure("broken")
        self.seq += 1
        ids, tokens = list(held), list(held.values())
        kinds, payloads = bytes([kind]) * len(ids), [payload] * len(ids)
        self.say(worker, m.Results(self.seq, window, ids, tokens, kinds, payloads))

    def ask(self, client: Peer, what: str, **args: Any) -> m.Answer:
        """Ask, and return the answer, which must be there at once."""
        self.seq += 1
        self.say(client, m.Query(self.seq, what, args))
        answers = self.got(client, m.Answer)
        assert len(answers) == 1
        return answers[0]

    def _next(self) -> int:
        self._n += 1
        return self._n

    def _next_counter(self, count: int) -> int:
        first, self._counter = getattr(self, "_counter", 0), getattr(self, "_counter", 0) + count
        return first


def hello(name: str, types: Sequence[str] = ("echo",), **given: Any) -> m.WorkerHello:
    """Return a worker's HELLO."""
    held: dict[str, bytes] = given.pop("held", {})
    slots = given.pop("slots", 1)
    return m.WorkerHello(
        given.pop("version", 1),
        given.pop("mesh", "m"),
        name,
        given.pop("boot", "b1"),
        "test",
        "machine",
        "host",
        0,
        list(types),
        given.pop("models", []),
        slots,
        given.pop("window", slots),
        list(held),
        list(held.values()),
        proof=given.pop("proof", b""),
    )


def beat(
    held: Sequence[str], work_seq: int, *, window: int = 1, types: Sequence[str] = ("echo",)
) -> m.Heartbeat:
    """Return a worker's heartbeat."""
    return m.Heartbeat(work_seq, window, 0, 0, list(types), [], list(held))
