"""The broker: a plain poll loop that joins the dispatcher to its socket, journal and clock.

One wake-up drains the socket, feeds every message to the brain, commits what came of it
and sends what it asked for: nothing that promises anything leaves before its batch is on
the disk (`Broker._perform`, the only place where that rule lives).
"""

from __future__ import annotations

import gc
import logging
import math
import queue
import random
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from d8mesh import __version__
from d8mesh.config import BROKER_PORT_TRIES, PORTS_END, Config
from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.effects import Effect, Load, Loaded, Peer, Record, Send
from d8mesh.core.broker.state import Policy
from d8mesh.core.protocol.addresses import LOOPBACK, is_admissible, is_loopback
from d8mesh.core.protocol.codec import decode_to_broker, encode
from d8mesh.core.protocol.messages import Refused
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.core.protocol.task import Fact
from d8mesh.edge import address_file
from d8mesh.edge.discovery import Announcement, Discovery, NodeKind, Sighting
from d8mesh.edge.failpoints import passed
from d8mesh.edge.logs import event
from d8mesh.edge.network import is_taken_unseen, usable_addresses
from d8mesh.edge.sqlite import Journal, Reader
from d8mesh.edge.transport.sockets import Loop, RouterEndpoint, Waker
from d8mesh.errors import D8Error, ProtocolError

#: Messages taken in before a commit: bounds how long the first of them waits for its answer.
MAX_DRAIN: Final = 512
#: The hand-out of a single task is written after once or twice so long: quick tasks are finished
#: by then, also a thousand at once, and need no record of who had them.
ASSIGNMENTS_WRITTEN_S: Final = 0.1
#: How often the room on the disk is looked at.
DISK_CHECK_S: Final = 2.0
#: How often a line sums up what happened.
SUMMARY_S: Final = 60.0
#: Bad frames of one connection that get an answer; more are dropped in silence.
ANSWERED_STRIKES: Final = 3
#: Connections whose bad frames are remembered.
MAX_STRIKERS: Final = 4096
#: Objects made between two collections: a hand-out of a batch makes thousands at once.
GC_ALLOCATIONS: Final = 50_000
#: What FLASK_HOST says for all addresses.
_ALL_ADDRESSES: Final = ("0.0.0.0", "::")
JOURNAL_NAME: Final = "journal.db"

#: From (routing id, address, key) to a `Peer`, without the call that a `NamedTuple` makes of it.
_PEER_OF: Final = partial(tuple.__new__, Peer)
_log: Final = logging.getLogger("d8mesh.broker")


@dataclass(frozen=True, slots=True)
class Ready:
    """What a broker that is up says of itself."""

    broker_id: str
    port: int
    epoch: int


class Broker:
    """One orchestrator's broker.

    Args:
        config: the settings.
        folder: where the journal lies.
        web_port: the REST port to announce, None if there is none.

    Raises:
        JournalHeldError: another orchestrator uses the journal.
        JournalBrokenError: the journal is damaged or of a newer version.
        D8Error: no port is free.

    Thread: made and run on one thread; `stop` may be called from any.
    """

    def __init__(self, config: Config, folder: Path, *, web_port: int | None = None) -> None:
        self._config, self._folder, self._web_port = config, folder, web_port
        self._journal = Journal(folder / JOURNAL_NAME)
        self._waker = Waker()
        ports = range(config.broker_port, min(config.broker_port + BROKER_PORT_TRIES, PORTS_END))
        try:
            self._router = RouterEndpoint(
                _listens_on(config.web_host),
                ports,
                is_admissible=is_admissible,
                is_taken=is_taken_unseen,
            )
        except BaseException:
            self._journal.close()
            raise
        self._loop = Loop(self._waker, self._router)
        self._questions = _Questions(folder / JOURNAL_NAME, self._waker)
        restored = self._journal.restore()
        passed("broker.restored")
        policy = _policy(config, self._journal.broker_id, self._router.port)
        self._dispatcher = Dispatcher(
            policy, restored, random.random, now=time.monotonic(), at=time.time()
        )
        self._ready = Ready(policy.broker_id, self._router.port, restored.epoch)
        self._strikes: OrderedDict[bytes, int] = OrderedDict()
        self._is_stopping = threading.Event()
        self._next_disk_check = self._next_summary = 0.0
        self._undelivered = 0
        self._owed_until = math.inf
        self._discovery = Discovery(
            mesh=config.mesh,
            addresses=partial(_announced, config),
            on_sighting=_heard_worker,
            browse=(NodeKind.WORKER,),
            on_trouble=lambda text: event(_log, logging.WARNING, "discovery", trouble=text),
        )
        self._discovery.announce(
            Announcement(
                kind=NodeKind.ORCHESTRATOR,
                node_id=policy.broker_id,
                boot_id=secrets.token_hex(8),
                mesh=config.mesh,
                port=self._router.port,
                web_port=web_port,
                version=__version__,
            )
        )

    @property
    def ready(self) -> Ready:
        """What is told to whoever started this broker."""
        return self._ready

    def run(self) -> None:
        """Serve until `stop`.

        Raises:
            JournalError: a commit failed; what it held was not acknowledged to anybody.
        """
        self._discovery.start()
        self._write_address()
        # What lives from here on is mostly tasks, which hold no cycles: collect seldom.
        gc.freeze()
        gc.set_threshold(GC_ALLOCATIONS, 20, 50)
        ready = self._ready
        event(_log, logging.INFO, "broker.up", port=ready.port, epoch=ready.epoch)
        try:
            while not self._is_stopping.is_set():
                self._step()
            passed("broker.stopping")
            self._perform(self._dispatcher.drain())
        finally:
            address_file.remove(self._folder)
            self._discovery.close()
            self._questions.close()
            self._router.close()
            self._journal.close()
            self._waker.close()
            event(_log, logging.INFO, "broker.down", port=ready.port)

    def _write_address(self) -> None:
        """Tell who is on this machine and hears no mDNS."""
        own = [each.address for each in usable_addresses(self._config.interfaces)]
        ready = self._ready
        known = KnownBroker(ready.broker_id, (LOOPBACK, *own), ready.port, self._web_port)
        address_file.write(self._folder, known, self._config.mesh)

    def stop(self) -> None:
        """Let `run` say goodbye and return."""
        self._is_stopping.set()
        self._waker.wake()

    # -------------------------------------------------------------------- the loop

    def _step(self) -> None:
        """One wake-up: drain, decide, commit, send."""
        dispatcher = self._dispatcher
        received = self._router.receive(MAX_DRAIN)
        if not received:  # what came during a commit needs no poll, which costs more than this
            due = min(dispatcher.next_deadline(), self._owed_until)
            is_readable = self._loop.wait(max(0.0, due - time.monotonic()))
            received = self._router.receive(MAX_DRAIN, is_readable=is_readable)
        now = time.monotonic()
        effects: list[Effect] = []
        make_peer = _PEER_OF
        for routing_id, address, frame in received:
            peer = make_peer((routing_id, address, None))
            try:
                if frame is None:
                    raise ProtocolError("a message is one frame: saw several")
                message = decode_to_broker(frame)
            except ProtocolError as error:
                self._strike(peer, error)
                continue
            effects += dispatcher.receive(message, peer, now)
        while self._questions.answers:
            effects += dispatcher.loaded(self._questions.answers.popleft())
        if now >= self._next_disk_check:
            self._check_disk(now)
        effects += dispatcher.tick(now, time.time())
        if effects:
            passed("broker.received")
            self._perform(effects)
        if now >= self._owed_until:
            self._commit([])
        if now >= self._next_summary:
            self._sum_up(now)

    def _perform(self, effects: Sequence[Effect]) -> None:
        """Send what promises nothing, commit, send the rest, then ask the journal."""
        facts = [effect.fact for effect in effects if type(effect) is Record]
        sends = [effect for effect in effects if type(effect) is Send]
        follow_ups: list[Effect] = []
        deliver = self._router.send  # never waits
        for send in sends:
            if not send.waits and not deliver(send.peer.routing_id, encode(send.message)):
                follow_ups += self._missed(send)
        # Encoded before the commit: who waits for it shall not wait for this too.
        waiting = [(send, encode(send.message)) for send in sends if send.waits]
        if facts:
            passed("broker.before_commit")
            self._commit(facts)
            passed("broker.after_commit")
        for send, frame in waiting:
            if not deliver(send.peer.routing_id, frame):
                follow_ups += self._missed(send)
            passed("broker.between_sends")
        passed("broker.after_sends")
        for effect in effects:
            if type(effect) is Load:
                self._questions.ask(effect)
        if follow_ups:  # only now: their facts stand on those of this batch
            self._perform(follow_ups)

    def _commit(self, facts: Sequence[Fact]) -> None:
        """Have the facts on the disk; hand-outs among them are owed for a while."""
        now = time.monotonic()
        is_due = now >= self._owed_until
        self._journal.append(facts, is_due=is_due)
        if not self._journal.owes:
            self._owed_until = math.inf
        elif is_due or self._owed_until == math.inf:
            self._owed_until = now + ASSIGNMENTS_WRITTEN_S

    def _missed(self, send: Send) -> list[Effect]:
        """A message could not be sent: return what is to be done."""
        self._undelivered += 1
        return self._dispatcher.undelivered(send.peer, send.message)

    def _strike(self, peer: Peer, error: ProtocolError) -> None:
        """Drop a bad frame, count it, and tell its sender the first few times."""
        self._dispatcher.state.reject(error.code)
        count = self._strikes.pop(peer.routing_id, 0) + 1
        self._strikes[peer.routing_id] = count
        if len(self._strikes) > MAX_STRIKERS:
            self._strikes.popitem(last=False)
        if count <= ANSWERED_STRIKES:
            event(_log, logging.WARNING, "frame.bad", address=peer.address, error=str(error))
            answer = Refused(0, error.code, str(error)[:1000])
            self._router.send(peer.routing_id, encode(answer))

    def _check_disk(self, now: float) -> None:
        self._next_disk_check = now + DISK_CHECK_S
        reserve = self._config.disk_reserve_mb * 1_000_000
        is_low = self._journal.free_bytes() < reserve
        if is_low != self._dispatcher.state.is_disk_low:
            level = logging.WARNING if is_low else logging.INFO
            event(_log, level, "disk.low" if is_low else "disk.ok", reserve_bytes=reserve)
            self._dispatcher.set_disk_low(is_low)

    def _sum_up(self, now: float) -> None:
        first, self._next_summary = not self._next_summary, now + SUMMARY_S
        if first:
            return
        state = self._dispatcher.state
        event(
            _log,
            logging.INFO,
            "broker.summary",
            queued=state.task_table.queued,
            running=state.task_table.running,
            completed=state.task_table.totals.completed,
            failed=state.task_table.totals.failed,
            workers=sum(
                worker_state.is_live for worker_state in state.registry.worker_states.values()
            ),
            clients=len(state.clients),
            rejected=sum(state.rejected.values()),
            undelivered=self._undelivered,
        )


def _heard_worker(sighting: Sighting) -> None:
    """Note a worker of the mesh; it connects by itself, but one that cannot is found in the log."""
    event(
        _log,
        logging.INFO,
        "worker.heard",
        worker=sighting.node_id,
        addresses=",".join(sighting.addresses),
    )


class _Questions:
    """The reading side of the journal, on a thread of its own."""

    def __init__(self, path: Path, waker: Waker) -> None:
        self.answers: deque[Loaded] = deque()
        self._waker = waker
        self._asked: queue.SimpleQueue[Load | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._serve, args=(path,), name="journal-reader", daemon=True
        )
        self._thread.start()

    def ask(self, load: Load) -> None:
        self._asked.put(load)

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join(timeout=5.0)

    def _serve(self, path: Path) -> None:
        reader = Reader(path)
        try:
            while (load := self._asked.get()) is not None:
                self.answers.append(_answer(load, reader.query))
                self._waker.wake()
        finally:
            reader.close()


def _answer(
    load: Load, query: Callable[[str, tuple[object, ...]], list[tuple[object, ...]]]
) -> Loaded:
    try:
        return Loaded(load.number, query(load.what, load.args))
    except D8Error as error:
        return Loaded(load.number, [], str(error))
    except Exception as error:  # a damaged row: the next question may be about a sound one
        event(_log, logging.ERROR, "journal.unreadable", what=load.what, error=repr(error))
        return Loaded(load.number, [], f"the journal cannot be read here: {error!r}")


def _listens_on(host: str) -> list[str]:
    """Return the addresses that the broker listens on when the REST listens on `host`.

    Loopback always: the REST process reaches the broker there.
    """
    if host in _ALL_ADDRESSES:
        return ["*"]
    return [LOOPBACK] if host == "localhost" else list(dict.fromkeys((host, LOOPBACK)))


def _announced(config: Config) -> list[str]:
    """Return the addresses to announce: none that nobody listens on."""
    usable = [each.address for each in usable_addresses(config.interfaces)]
    if config.web_host in _ALL_ADDRESSES or not usable:
        return usable
    return [LOOPBACK if is_loopback(config.web_host) else config.web_host]


def _policy(config: Config, broker_id: str, port: int) -> Policy:
    return Policy(
        broker_id=broker_id,
        mesh=config.mesh,
        version=__version__,
        broker_port=port,
        polling_timeout_s=config.heartbeat_timeout_s,
        task_timeout_s=config.task_timeout_s,
        max_attempts=config.max_attempts,
        queue_size=config.queue_size,
        queue_bytes=config.queue_bytes,
        retention_s=config.retention_days * 86_400,
        retention_count=config.retention_count,
    )
