"""The worker's I/O thread: joins the session to its links, slots, outbox and the clock."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from d8mesh.core.protocol.codec import decode_to_worker, encode
from d8mesh.core.protocol.messages import Placement, Received, Results
from d8mesh.core.protocol.route import Route
from d8mesh.core.worker.effects import (
    Abort,
    Attempt,
    Forget,
    Joined,
    Keep,
    Listened,
    Rebuild,
    Retire,
    SendOn,
    Start,
    StartPlaced,
    TakeBack,
    Trouble,
    WarmUp,
    WorkerEffect,
)
from d8mesh.core.worker.session import WorkerSession
from d8mesh.edge.clocks import slept_s
from d8mesh.edge.failpoints import passed
from d8mesh.edge.identity import Identity
from d8mesh.edge.logs import event
from d8mesh.edge.transport.sockets import DealerLink, Loop, Waker
from d8mesh.errors import ProtocolError
from d8mesh.nodes.reconnector.reconnector import CUT_S
from d8mesh.nodes.worker.orchestrators import Orchestrators
from d8mesh.nodes.worker.outbox_writer import OutboxWriter
from d8mesh.nodes.worker.slots import Bell, Slots

#: Messages taken from one link before the others have their turn.
MESSAGES_PER_LINK: Final = 64
#: How often the slots are looked at.
WATCH_S: Final = 0.5
#: The same with nothing running: only the links and the clocks are looked at.
IDLE_WATCH_S: Final = 1.5
#: The interfaces are looked at this often.
INTERFACES_LOOK_S: Final = 3.0
#: A heartbeat unanswered for this long: it is asked whether the orchestrator has moved.
DOUBT_S: Final = 1.5
#: A machine that slept longer than this has dead connections.
SLEPT_S: Final = 5.0
#: An attempt that keeps the I/O thread for longer than this loses it to another thread: far
#: below a heartbeat's pause.
RELIEF_S: Final = 0.25

WorkerAction: TypeAlias = Callable[[float], list[WorkerEffect]]
_log: Final = logging.getLogger("d8mesh.worker")


class _Relieved(Exception):
    """This thread is the I/O thread no longer; a slot waits until it `is_free`."""

    def __init__(self, is_free: threading.Event) -> None:
        super().__init__()
        self.is_free = is_free


class WorkerRunner:
    """Runs a worker's session on a thread of its own.

    An attempt that is alone, and of a type that has been quick, runs on that thread too: handing
    it to a slot and its result back would take longer than itself. Should it take its time after
    all, another thread becomes the I/O thread (`_relieve`), and this one ends with the attempt.

    Args:
        slots: where attempts run; started and closed here.
        addresses: returns the machine's addresses in use.

    Thread: `do`, `stop` and the events may be used from any.
    """

    def __init__(
        self,
        session: WorkerSession,
        *,
        slots: Slots,
        orchestrators: Orchestrators,
        identity: Identity,
        waker: Waker,
        addresses: Callable[[], frozenset[str]],
    ) -> None:
        self.session = session
        self.joined = threading.Event()
        self.ended = threading.Event()
        self.endpoints: dict[str, str] = {}
        #: what ended it before it was asked to
        self.fatal: Exception | None = None
        #: called when a model had better be loaded; must not wait
        self.on_warm: Callable[[Placement], None] = lambda placement: None
        self._slots, self._identity = slots, identity
        self._orchestrators, self._new_links = orchestrators, orchestrators.links
        self._bell: Bell = slots.bell
        self._waker, self._loop = waker, Loop(waker)
        self._addresses = addresses
        self._inbox: deque[WorkerAction] = deque()
        self._links: dict[str, tuple[DealerLink, Route]] = {}
        self._cut_since: dict[str, float] = {}
        self._outbox = OutboxWriter(identity.folder)
        self._stop_at: float | None = None
        self._next_watch = self._next_look = 0.0
        self._in_use = addresses()
        self._slept_s = slept_s()
        #: how many attempts were begun and have not been handed in or given back
        self._at_work = 0
        #: the attempt to run on this thread, once all that came with it has been taken in
        self._lone: Attempt | None = None
        #: guards since when the I/O thread has been at an attempt (0: it is not), and who was
        #: relieved: thread -> what to set at the end of the attempt
        self._guard = threading.Lock()
        self._lent_at = 0.0
        self._relieved: dict[int, threading.Event] = {}
        self._keeper = 0
        self._is_lending = threading.Event()
        self._has_relief = False

    @property
    def outbox_trouble(self) -> str:
        """Why results cannot be kept on the disk; empty: they can."""
        return self._outbox.trouble

    @property
    def passed_over(self) -> list[str]:
        """Which orchestrators are not contacted, and why: a sentence each. Thread: any."""
        return self._orchestrators.trust.strangers

    def start(self) -> None:
        """Begin."""
        self._slots.start_all()
        threading.Thread(target=self._serve, name="worker-io", daemon=True).start()
        self._has_relief = self._start_relief()

    def do(self, action: WorkerAction) -> None:
        """Have the I/O thread do something with the session."""
        self._inbox.append(action)
        self._bell.ring()

    def stop(self, drain_s: float) -> None:
        """Take nothing new, finish or give back within `drain_s`, say goodbye, and end."""

        def begin(now: float) -> list[WorkerEffect]:
            until = now + drain_s
            self._stop_at = until if self._stop_at is None else min(self._stop_at, until)
            return self.session.drain(now)

        self.do(begin)

    # ------------------------------------------------------------------- the loop

    def _serve(self) -> None:
        """Be the I/O thread, to the end or until another is."""
        self._keeper = threading.get_ident()
        try:
            self._outbox.open()
            while not self._is_over():
                self._turn()
            passed("worker.stopping")
            self._perform(self.session.leave("stopped"))
        except _Relieved as relieved:
            relieved.is_free.set()
            self._bell.ring()
        except Exception as error:
            event(_log, logging.CRITICAL, "worker.died", error=repr(error))
            self.fatal = error
            self._close()
            raise
        else:
            self._close()

    def _close(self) -> None:
        self._orchestrators.close()
        for key in list(self._links):
            self._drop(key)
        self._outbox.close()
        self._waker.close()
        self.ended.set()
        self._is_lending.set()

    def _relieve(self) -> None:
        """Become the I/O thread if an attempt keeps that for too long."""
        pause_s = RELIEF_S
        while True:
            self._is_lending.wait()
            time.sleep(pause_s)
            if self.ended.is_set():
                return
            with self._guard:
                left_s = self._lent_at + RELIEF_S - time.monotonic()
                if not self._lent_at:
                    self._is_lending.clear()
                elif left_s <= 0 and self._start_relief():
                    self._lent_at = 0.0
                    self._relieved[self._keeper] = self._slots.keep_one()
                    break
                pause_s = left_s if 0 < left_s < RELIEF_S else RELIEF_S
        self._next_watch = 0.0
        self._serve()

    def _start_relief(self) -> bool:
        """Start the thread that may relieve the I/O thread; False if there can be none more."""
        relief = threading.Thread(target=self._relieve, name="worker-io-relief", daemon=True)
        try:
            relief.start()
        except RuntimeError:
            return False
        return True

    def _is_over(self) -> bool:
        if self._stop_at is None:
            return False
        is_done = self.session.is_idle and not self._slots.ended
        return is_done or time.monotonic() >= self._stop_at

    def _turn(self) -> None:
        """One wake-up: take in what there is and do what the brain asks for."""
        slots, session, bell = self._slots, self.session, self._bell
        due = min(session.next_deadline(), self._next_watch)
        bell.is_asleep = True
        if slots.pieces:
            due = min(due, slots.pieces_due)
        has_work = slots.ended or self._inbox or self._new_links or self._lone
        wait_s = 0.0 if has_work else max(0.0, due - time.monotonic())
        self._loop.wait(wait_s)
        bell.is_asleep = False
        now = time.monotonic()
        while self._new_links:
            self._connect(*self._new_links.popleft(), now)
        self._act(now)
        if slots.ended:  # first: somebody waits for it
            self._hand_in(now)
        for key, (link, _) in list(self._links.items()):
            if key in self._links and (link.is_cut or link.is_renewed):
                self._mind(key, link, now)
            if key not in self._links:  # what came over another one has retired it
                continue
            for frame in link.receive(MESSAGES_PER_LINK):
                self._receive(frame, key, now)
        if self._lone is not None:
            self._run_lone()
        if slots.pieces and now >= slots.pieces_due:
            self._take_pieces()
        if now >= self._next_watch:
            running = slots.running()
            self._next_watch = now + (WATCH_S if running else IDLE_WATCH_S)
            if running:
                passed("worker.mid_run")
            slots.look(now)
            self._perform(session.watch(running, now))
            self._look(now)
            self._doubt(now)
        self._perform(session.tick(now))

    def _act(self, now: float) -> None:
        """Do what others have asked for."""
        while self._inbox:
            self._perform(self._inbox.popleft()(now))

    def _hand_in(self, now: float) -> None:
        slots = self._slots
        passed("worker.finished")
        take = slots.ended.popleft
        ended = [take() for _ in range(len(slots.ended))]
        self._act(now)  # that a service is paused is said before what failed there is given back
        self._at_work -= len(ended)
        if slots.aborted:
            slots.aborted.forget([row[2] for row in ended])
        if slots.listened:
            slots.listened.difference_update([row[1] for row in ended])
        self._take_pieces()
        self._perform(self.session.finished(ended, now))

    def _begin(self, effect: Start | StartPlaced) -> None:
        """Give attempts to the slots; one that is alone and quick is kept for this thread."""
        attempts = effect.attempts
        is_alone = self._has_relief and not self._at_work and len(attempts) == 1
        self._at_work += len(attempts)
        if isinstance(effect, StartPlaced):
            self._slots.put_placed(attempts)
        elif is_alone and self._slots.is_quick(attempts[0].type):
            self._lone = attempts[0]
            return
        else:
            self._put_lone()
            self._slots.put(attempts)
        self._next_watch = min(self._next_watch, time.monotonic() + WATCH_S)

    def _put_lone(self) -> None:
        """Give what was kept for this thread to the slots after all."""
        if self._lone is not None:
            lone, self._lone = self._lone, None
            self._slots.put([lone])

    def _run_lone(self) -> None:
        """Run an attempt here, and hand its result in.

        Raises:
            _Relieved: it took so long that another thread is the I/O thread by now.
        """
        attempt, self._lone = self._lone, None
        assert attempt is not None
        with self._guard:
            self._lent_at = time.monotonic()
            if not self._is_lending.is_set():
                self._is_lending.set()
        try:
            self._slots.run_here(attempt)
        finally:
            with self._guard:
                is_free = self._relieved.pop(threading.get_ident(), None)
                if is_free is not None:
                    raise _Relieved(is_free)
                self._lent_at = 0.0
        self._hand_in(time.monotonic())

    def _take_pieces(self) -> None:
        if self._slots.pieces:
            self._perform(self.session.chunks(self._slots.take_pieces()))

    def _receive(self, frame: bytes, key: str, now: float) -> None:
        try:
            message = decode_to_worker(frame)
        except ProtocolError as error:
            event(_log, logging.WARNING, "frame.bad", link=key, error=str(error))
            return
        if type(message) is Received:
            passed("worker.acknowledged")
        self._perform(self.session.receive(message, key, now))

    def _look(self, now: float) -> None:
        """Notice that the machine slept, that there is room again, or other interfaces."""
        if self.outbox_trouble:
            self._outbox.write()
            self._mind_outbox()
        self._outbox.tidy()
        before, self._slept_s = self._slept_s, slept_s()
        if self._slept_s - before > SLEPT_S:
            self._perform(self.session.woke(now))
        if now < self._next_look:
            return
        self._next_look = now + INTERFACES_LOOK_S
        in_use = self._addresses()
        if in_use == self._in_use:
            return
        self._in_use = in_use
        event(_log, logging.INFO, "interfaces.changed", addresses=",".join(sorted(in_use)))
        for key, (_, route) in list(self._links.items()):
            if "127.0.0.1" not in route.endpoint:
                self._rebuild(key)

    def _mind_outbox(self) -> None:
        """While results cannot be kept no more tasks are taken."""
        self.session.flow.is_disk_bad = bool(self._outbox.trouble)

    # ------------------------------------------------------------------------ links

    def _connect(self, key: str, link: DealerLink, route: Route, now: float) -> None:
        """Use a new connection, in place of the one before."""
        if key in self._links:
            self._drop(key)
            self._perform(self.session.link_down(key, now))
        self._links[key] = (link, route)
        self._loop.add(link)
        self._perform(self.session.link_up(key, now, link.server_key))

    def _mind(self, key: str, link: DealerLink, now: float) -> None:
        """A connection is broken, or was: what was said meanwhile may be lost."""
        if link.is_refused:
            why = self._orchestrators.refused(key, link)
            self._drop(key)
            self._perform(self.session.link_down(key, now, why))
            self._tell_joined()
        elif link.is_renewed:
            link.is_renewed = False
            self._cut_since.pop(key, None)
            self._perform(self.session.link_up(key, now, link.server_key))
        elif key not in self._cut_since:
            self._cut_since[key] = now
            for frame in link.receive(MESSAGES_PER_LINK):  # a goodbye may lie before the cut
                self._receive(frame, key, now)
            self._perform(self.session.link_down(key, now))
        elif now - self._cut_since[key] > CUT_S:
            event(_log, logging.INFO, "link.lost", link=key, why=f"cut for {CUT_S:g} s")
            self._rebuild(key)

    def _doubt(self, now: float) -> None:
        """Look for who answers no heartbeat, or is new here: it may have another address by now."""
        self._orchestrators.look()
        for each in self.session.brokers.values():
            if each.is_welcome and now - each.heard > each.heartbeat_s + DOUBT_S:
                self._orchestrators.doubt(each.key)

    def _drop(self, key: str) -> None:
        self._cut_since.pop(key, None)
        link, _ = self._links.pop(key)
        self.endpoints.pop(key, None)
        self._loop.remove(link)
        link.close()

    def _rebuild(self, key: str) -> None:
        if key in self._links:
            self._drop(key)
        self._perform(self.session.link_down(key, time.monotonic()))
        self._tell_joined()
        self._orchestrators.again(key)

    def _joined(self, key: str, broker_id: str) -> None:
        if not self._orchestrators.welcomed(key, broker_id):
            self._rebuild(key)
            return
        _, route = self._links[key]
        self.endpoints[key] = route.endpoint
        event(_log, logging.INFO, "worker.joined", broker=broker_id, endpoint=route.endpoint)
        if not route.is_http:
            self._identity.remember(self._orchestrators.reached(broker_id, route))
        self._tell_joined()
        self.joined.set()

    def _tell_joined(self) -> None:
        sessions = self.session.brokers.values()
        self._orchestrators.joined = {s.broker_id: s.key for s in sessions if s.is_welcome}
        if not self._orchestrators.joined:
            self.joined.clear()

    # ----------------------------------------------------------------------- effects

    def _perform(self, effects: Sequence[WorkerEffect]) -> None:
        """Do what the brain asks for, in order: what is kept is on the disk before it is sent."""
        slots = self._slots
        for effect in effects:
            match effect:
                case Start() | StartPlaced():
                    passed("worker.handed_out")
                    self._begin(effect)
                case SendOn():
                    held = self._links.get(effect.link)
                    if held is not None:
                        held[0].send(encode(effect.message))
                        if type(effect.message) is Results:
                            passed("worker.results_sent")
                case TakeBack():
                    self._put_lone()
                    given = slots.take_back(effect.link, effect.count, is_of_all=effect.is_of_all)
                    self._at_work -= len(given)
                    slots.aborted.forget([attempt.token for attempt in given])
                    self._perform(self.session.taken_back(given, time.monotonic()))
                case Abort():
                    slots.aborted.add(effect.tokens)
                case Listened():
                    slots.heed(effect.ids, is_on=effect.is_on)
                case Keep() | Forget():
                    self._outbox.store(effect)
                    self._mind_outbox()
                case _:
                    self._tend(effect)

    def _tend(self, effect: WarmUp | Rebuild | Joined | Retire | Trouble) -> None:
        """Do what the brain asks for a service or a link."""
        match effect:
            case WarmUp():
                self.on_warm(effect.placement)
            case Rebuild():
                event(_log, logging.INFO, "link.lost", link=effect.link, why=effect.why)
                self._rebuild(effect.link)
            case Joined():
                self._slots.worker_id = self.session.profile.worker_id
                self._joined(effect.link, effect.broker_id)
            case Retire():
                self._retire(effect.link, effect.broker_id)
            case Trouble():
                self._rename()
                why = effect.text
                event(_log, logging.WARNING, "refused", link=effect.link, code=effect.code, why=why)

    def _rename(self) -> None:
        """Keep the id that the session took because another process has ours."""
        had, has = self._identity.worker_id, self.session.profile.worker_id
        if had != has:
            self._identity.rename(has)
            why = f"another process works as {had}: was its data folder copied?"
            event(_log, logging.WARNING, "worker.cloned", now=has, why=why)

    def _retire(self, key: str, broker_id: str) -> None:
        self._orchestrators.leads_to(self._links[key][1].endpoint, broker_id)
        self._drop(key)
        self._perform(self.session.forget_link(key))
        self._orchestrators.again(key)  # it waits while the other link stands
