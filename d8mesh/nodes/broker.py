"""The broker: a plain poll loop that joins the dispatcher to its socket, journal and clock.

One wake-up drains the socket, feeds every message to the brain, commits what came of it
and sends what it asked for: nothing that promises anything leaves before its batch is on
the disk (`Broker._perform`, the only place where that rule lives).
"""

from __future__ import annotations

import gc
import logging
import math
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from d8mesh import __version__
from d8mesh.config import BROKER_PORT_TRIES, PORTS_END, Config
from d8mesh.core.broker.deferral import Deferral
from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.effects import (
    Drop,
    Effect,
    Fault,
    KeepMembers,
    Load,
    Notice,
    Peer,
    Record,
    Send,
    UseView,
)
from d8mesh.core.broker.reports import snapshot
from d8mesh.core.broker.state import Policy
from d8mesh.core.broker.store import FoldLog, Store
from d8mesh.core.protocol.codec import decode_to_broker, encode
from d8mesh.core.protocol.membership import announced_proof
from d8mesh.core.protocol.messages import Refused
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.core.protocol.task import Fact
from d8mesh.core.protocol.wish import Cloud
from d8mesh.edge.failpoints import passed
from d8mesh.edge.logs import event, traced
from d8mesh.edge.network import is_taken_unseen
from d8mesh.edge.sqlite import Journal
from d8mesh.edge.transport.keys import KeyPair, kept_pair
from d8mesh.edge.transport.router import RouterEndpoint
from d8mesh.edge.transport.sockets import Loop, Waker
from d8mesh.errors import JournalError, ProtocolError
from d8mesh.nodes.announcer import Announcer, listens_on
from d8mesh.nodes.credentials import secret_of
from d8mesh.nodes.doorkeeper import Doorkeeper
from d8mesh.nodes.store_reader import StoreReader

#: Messages taken in before a commit: bounds how long the first of them waits for its answer.
MAX_DRAIN: Final = 512
#: Wake-ups that may wait for their commits; nothing more is received from there on, so memory is
#: bounded. A commit of 50 ms is far below.
MAX_HELD: Final = 256
#: How long a stop waits for what was begun.
STOP_S: Final = 5.0
#: How often the room on the disk is looked at.
DISK_CHECK_S: Final = 2.0
#: How long what was erased may still lie in the journal's log, and how soon it is looked again when
#: the log could not be overwritten: somebody read it, or the disk failed.
WIPE_S: Final = 2.0
WIPE_AGAIN_S: Final = 0.05
#: The number of a question that the brain has not asked: its answer is passed over.
_NOBODYS: Final = 0
#: How often a line sums up what happened.
SUMMARY_S: Final = 60.0
#: Bad frames of one connection that get an answer; more are dropped in silence.
ANSWERED_STRIKES: Final = 3
#: Connections whose bad frames are remembered.
MAX_STRIKERS: Final = 4096
#: Objects made between two collections: an assignment of a batch makes thousands at once.
GC_ALLOCATIONS: Final = 50_000
JOURNAL_NAME: Final = "journal.db"
#: Effects of nearly every wake-up; the others are looked at one by one.
_OF_EVERY_WAKE_UP: Final = frozenset({Send, Record, Load})

_log: Final = logging.getLogger("d8mesh.broker")

#: Opens a store in a folder; the store calls the second whenever a commit has become durable.
OpenStore: TypeAlias = Callable[[Path, Callable[[], None]], Store]


def open_journal(folder: Path, wake: Callable[[], None], *, is_sealed: bool = False) -> Store:
    """Open the journal in a folder: its commits are durable at once, and wake nobody."""
    del wake
    return Journal(folder / JOURNAL_NAME, is_sealed=is_sealed)


@dataclass(frozen=True, slots=True)
class _Held:
    """What stands on a commit that is under way."""

    commit: int  #: its number
    now: float  #: of its wake-up
    sends: Sequence[tuple[Send, bytes]]
    loads: Sequence[Load]


@dataclass(frozen=True, slots=True)
class Ready:
    """What a broker that is up says of itself."""

    broker_id: str
    port: int
    epoch: int
    server_key: str  #: its public key, 64 hex digits


class Broker:
    """One orchestrator's broker.

    Args:
        folder: where the journal lies.
        web_port: the REST port to announce, None if there is none.
        tls: the fingerprint of its certificate; "" for plain HTTP.
        open_store: opens what keeps the tasks; None: the journal.
        say: takes in what is to be told to whoever runs the orchestrator.

    Raises:
        JournalHeldError: another orchestrator uses the journal.
        JournalBrokenError: the journal is damaged, of a newer version, or its key is missing.
        KeyFileError: its key file cannot be used.
        ConfigError: the file of members is damaged.
        D8Error: no port is free.

    Thread: made and run on one thread; `stop` may be called from any.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        web_port: int | None = None,
        tls: str = "",
        open_store: OpenStore | None = None,
        say: Callable[[Notice], None] = lambda notice: None,
    ) -> None:
        self._config = config
        opener: OpenStore = open_store or partial(open_journal, is_sealed=config.encrypt)
        self._store = opener(folder, lambda: self._waker.wake())
        self._waker = Waker()
        ports = range(config.broker_port, min(config.broker_port + BROKER_PORT_TRIES, PORTS_END))
        try:
            self._keys = kept_pair(folder)
            self._door = Doorkeeper(config, folder, self._waker.wake, say)
            self._router = RouterEndpoint(
                listens_on(config.web_host),
                ports,
                keys=self._keys,
                gate=self._door.admits,
                is_taken=is_taken_unseen,
                wake=self._waker.wake,
            )
        except BaseException:
            self._store.close()
            raise
        self._loop = Loop(self._waker, self._router)
        self._waker_alone = Loop(self._waker)
        self._questions = StoreReader(self._store, self._waker, is_awaited=self._is_awaited)
        restored = self._store.restore()
        passed("broker.restored")
        policy = replace(
            _policy(config, self._store.broker_id, self._router.port, self._keys), tls=tls
        )
        members, clocks = self._door.members, (time.monotonic(), time.time())
        self._dispatcher = Dispatcher(
            policy, restored, random.random, members=members, now=clocks[0], at=clocks[1]
        )
        #: what is told to whoever started this broker
        key = self._keys.public.hex()
        self.ready = Ready(policy.broker_id, self._router.port, restored.epoch, key)
        proof = b""
        if policy.mesh_secret is not None:
            proof = announced_proof(policy.mesh_secret, self._keys.public)
        self._strikes: OrderedDict[bytes, int] = OrderedDict()
        self._is_stopping, self._is_disk_low = threading.Event(), False
        self._next_disk_check, self._next_summary = 0.0, time.monotonic() + SUMMARY_S
        self._next_wipe, self._is_folded = math.inf, False
        self._deferral = Deferral()
        self._begun = self._measured = 0  #: commits: their number, the last held one measured
        self._held: deque[_Held] = deque()
        self._now = 0.0  #: of the wake-up
        where = (policy.broker_id, (), self._router.port, web_port, self._keys.public, proof, tls)
        self._announcer = Announcer(config, folder, KnownBroker(*where), self._door.heard)

    def run(self) -> None:
        """Serve until `stop`.

        Raises:
            JournalError: a commit failed; what it held was not acknowledged to anybody.
        """
        self._announcer.begin()
        # What lives from here on is mostly tasks, which hold no cycles: collect seldom.
        gc.freeze()
        gc.set_threshold(GC_ALLOCATIONS, 20, 50)
        ready = self.ready
        event(_log, logging.INFO, "broker.up", port=ready.port, epoch=ready.epoch)
        try:
            while not self._is_stopping.is_set():
                self._step()
            passed("broker.stopping")
            self._perform(self._dispatcher.drain())
            self._commit([], is_last=True)
            until = time.monotonic() + STOP_S
            while self._held and (left_s := until - time.monotonic()) > 0:
                self._waker_alone.wait(left_s)
                self._settle()
        finally:
            self._announcer.end()
            self._questions.close()
            self._router.close()
            self._store.close()
            self._waker.close()
            event(_log, logging.INFO, "broker.down", port=ready.port)

    def stop(self) -> None:
        """Let `run` say goodbye and return."""
        self._is_stopping.set()
        self._waker.wake()

    # -------------------------------------------------------------------- the loop

    def _step(self) -> None:
        """One wake-up: drain, decide, commit, send."""
        dispatcher = self._dispatcher
        is_full = len(self._held) >= MAX_HELD
        received = [] if is_full else self._router.receive(MAX_DRAIN)
        if not received:  # what came during a commit needs no poll, which costs more than this
            due = min(dispatcher.next_deadline(), self._deferral.until, self._next_wipe)
            left_s = max(0.0, due - time.monotonic())
            if is_full:
                self._waker_alone.wait(left_s)
            else:
                is_readable = self._loop.wait(left_s)
                received = self._router.receive(MAX_DRAIN, is_readable=is_readable)
        now = self._now = time.monotonic()
        if self._held:
            self._settle()
        effects = self._take_in(received, now)
        while self._questions.answers:
            effects += dispatcher.loaded(self._questions.answers.popleft())
        if now >= self._next_disk_check:
            self._check_disk(now)
        effects += dispatcher.tick(now, time.time())
        if effects:
            passed("broker.received")
            self._perform(effects)
        if now >= self._deferral.until:
            self._commit([])
        self._wipe(now)
        if now >= self._next_summary:
            self._sum_up(now)

    def _take_in(self, received: Sequence[tuple[Peer, bytes | None]], now: float) -> list[Effect]:
        """Return what the brain makes of what has come in: connections first, then frames."""
        dispatcher = self._dispatcher
        effects = self._door.tell(dispatcher, now) if self._door.has_news else []
        if self._router.rejections or self._announcer.ignored:
            self._count_rejections()
        for peer, frame in received:
            try:
                if frame is None:
                    raise ProtocolError("a message is one frame: saw several")
                message = decode_to_broker(frame)
            except ProtocolError as error:
                effects += self._strike(peer, error)
                continue
            effects += dispatcher.receive(message, peer, now)
        return effects

    def _wipe(self, now: float) -> None:
        """Have what was erased overwritten in the journal's log too: once for all of some time."""
        if not self._store.needs_wiping:
            return
        if self._next_wipe == math.inf:
            self._next_wipe, self._is_folded = now + WIPE_S, False
        if now < self._next_wipe:
            return
        self._next_wipe = now + WIPE_AGAIN_S
        if not self._is_folded:
            self._is_folded = True
            self._questions.ask(Load(_NOBODYS, FoldLog()))
            return
        try:
            if self._store.wipe():
                self._next_wipe = math.inf
        except JournalError as error:
            event(_log, logging.WARNING, "journal.unwiped", error=str(error))

    def _perform(self, effects: Sequence[Effect]) -> None:
        """Send what promises nothing, commit; the rest is done once that is durable."""
        facts = [effect.fact for effect in effects if type(effect) is Record]
        sends = [effect for effect in effects if type(effect) is Send]
        follow_ups: list[Effect] = []
        deliver = self._router.send  # never waits
        for send in sends:
            if not send.waits and not deliver(send.peer.routing_id, encode(send.message)):
                follow_ups += self._dispatcher.undelivered(send.peer, send.message)
        # Encoded before the commit: who waits for it shall not wait for this too.
        waiting = [(send, encode(send.message)) for send in sends if send.waits]
        loads = [effect for effect in effects if type(effect) is Load]
        for effect in effects:
            if type(effect) not in _OF_EVERY_WAKE_UP:
                follow_ups += self._perform_rare(effect)
        begun, number = time.monotonic(), self._begun
        if facts:
            passed("broker.before_commit")
            self._commit(facts)
        if not self._held and (not facts or self._store.confirmed() == self._begun):
            if self._begun > number:
                self._dispatcher.committed(time.monotonic() - begun)
            if facts:
                passed("broker.after_commit")
            follow_ups += self._go_on(waiting, loads)
        elif facts or waiting or loads:
            self._held.append(_Held(self._begun, self._now, waiting, loads))
            self._dispatcher.set_unconfirmed(self._held[0].now)
        if follow_ups:  # only now: their facts stand on those of this batch
            self._perform(follow_ups)

    def _perform_rare(self, effect: Effect) -> list[Effect]:
        match effect:
            case Fault(where, told):
                traced(_log, logging.ERROR, "broker.fault", told, at=where)
            case KeepMembers():
                return self._dispatcher.kept(effect, self._door.keep(effect))
            case UseView():
                self._door.use(effect)
            case Drop(peer, code):
                self._router.drop(peer, code)
            case Notice():
                self._door.notify(effect)
        return []

    def _go_on(self, waiting: Sequence[tuple[Send, bytes]], loads: Sequence[Load]) -> list[Effect]:
        """Send what stands on facts that are durable, and ask what is answered from them."""
        follow_ups: list[Effect] = []
        for send, frame in waiting:
            if not self._router.send(send.peer.routing_id, frame):
                follow_ups += self._dispatcher.undelivered(send.peer, send.message)
            passed("broker.between_sends")
        passed("broker.after_sends")
        for load in loads:
            self._questions.ask(load)
        return follow_ups

    def _commit(self, facts: Sequence[Fact], *, is_last: bool = False) -> None:
        """Have the facts committed, but for assignments that are written later or never."""
        written = self._deferral.due(facts, time.monotonic())
        if is_last:
            written += self._deferral.rest()
        if written:
            self._store.append(written)
            self._begun += 1

    def _settle(self) -> None:
        """Go on with what waited for commits that are durable by now, in order."""
        confirmed = self._store.confirmed()
        follow_ups: list[Effect] = []
        while self._held and self._held[0].commit <= confirmed:
            held = self._held.popleft()
            if held.commit > self._measured:  # others stand on the same
                self._dispatcher.committed(self._now - held.now)
            self._measured = held.commit
            follow_ups += self._go_on(held.sends, held.loads)
        self._dispatcher.set_unconfirmed(self._held[0].now if self._held else math.inf)
        if follow_ups:
            self._perform(follow_ups)

    def _strike(self, peer: Peer, error: ProtocolError) -> list[Effect]:
        """Drop a bad frame, count it, and tell its sender the first few times."""
        count = self._strikes.pop(peer.routing_id, 0) + 1
        self._strikes[peer.routing_id] = count
        if len(self._strikes) > MAX_STRIKERS:
            self._strikes.popitem(last=False)
        if count <= ANSWERED_STRIKES:
            event(_log, logging.WARNING, "frame.bad", address=peer.address, error=str(error))
            answer = Refused(0, error.code, str(error)[:1000])
            self._router.send(peer.routing_id, encode(answer))
        return self._dispatcher.malformed(peer, error.code, self._now)

    def _count_rejections(self) -> None:
        """Count the connections that were refused or cut off, and what mDNS brought in vain."""
        rejections = self._router.rejections
        while rejections:
            code, address = rejections.popleft()
            self._dispatcher.reject(code)
            event(_log, logging.WARNING, "connection.refused", code=code, address=address)
        while self._announcer.ignored:
            self._dispatcher.reject(self._announcer.ignored.popleft())

    def _is_awaited(self, session: str) -> bool:
        """Return whether this client is there and reads. Thread: any."""
        client = self._dispatcher.state.clients.get(session)
        return client is not None and self._router.is_reading(client.peer.routing_id)

    def _check_disk(self, now: float) -> None:
        self._next_disk_check = now + DISK_CHECK_S
        reserve = self._config.disk_reserve_mb * 1_000_000
        is_low = self._store.free_bytes() < reserve
        if is_low != self._is_disk_low:
            self._is_disk_low = is_low
            self._dispatcher.set_disk_low(is_low)
            level = logging.WARNING if is_low else logging.INFO
            event(_log, level, "disk.low" if is_low else "disk.ok", reserve_bytes=reserve)

    def _sum_up(self, now: float) -> None:
        self._next_summary = now + SUMMARY_S
        told = snapshot(self._dispatcher.state)
        event(
            _log,
            logging.INFO,
            "broker.summary",
            queued=told.queued,
            running=told.running,
            completed=told.counted.totals.completed,
            failed=told.counted.totals.failed,
            workers=told.workers_online,
            clients=told.clients,
            rejected=sum(told.counted.rejected.values()),
            undelivered=told.counted.undelivered,
        )


def _policy(config: Config, broker_id: str, port: int, keys: KeyPair) -> Policy:
    return Policy(
        broker_id=broker_id,
        mesh=config.mesh,
        version=__version__,
        broker_port=port,
        server_key=keys.public,
        mesh_secret=secret_of(config),
        polling_timeout_s=config.heartbeat_timeout_s,
        task_timeout_s=config.task_timeout_s,
        max_attempts=config.max_attempts,
        queue_size=config.queue_size,
        queue_bytes=config.queue_bytes,
        retention_s=config.retention_days * 86_400,
        retention_count=config.retention_count,
        cloud=Cloud(config.cloud),
        load_options={name: dict(each) for name, each in (config.load_options or {}).items()},
    )
