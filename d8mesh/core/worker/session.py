"""The worker's brain: one session with each orchestrator, and the slots shared among them.

Pure: no sockets, clock, threads or disk. Attempts are made of whole columns at once, so that a
task costs a dict insert and a few appends here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Final, assert_never

from d8mesh.core.protocol.messages import (
    FAILED,
    SUCCEEDED,
    Beat,
    Goodbye,
    Heartbeat,
    Listening,
    Placed,
    Recall,
    Received,
    Refused,
    Rehello,
    Release,
    Results,
    Stop,
    ToWorker,
    Warm,
    Welcome,
    Work,
)
from d8mesh.core.worker import broker_session
from d8mesh.core.worker.broker_session import BrokerSession, Profile, failure, hello, reason_in
from d8mesh.core.worker.effects import (
    UNAVAILABLE,
    Abort,
    Attempt,
    Ended,
    Joined,
    KeptResult,
    Listened,
    OutputPiece,
    Rebuild,
    Retire,
    Running,
    SendOn,
    Start,
    StartPlaced,
    TakeBack,
    Trouble,
    WarmUp,
    WorkerEffect,
)
from d8mesh.core.worker.flow_control import FlowControl
from d8mesh.core.worker.kept_results import KeptResults
from d8mesh.core.worker.service_offer import ServiceOffer

#: HELLO is said again after this long without an answer.
HELLO_S: Final = 3.0
#: A refused HELLO (another mesh or version) is tried again after this long.
REFUSED_PAUSE_S: Final = 30.0
#: Results without an acknowledgement are sent again after this long.
RESEND_S: Final = 10.0
#: A result that took longer than this to make lies on the disk before it is sent.
EXPENSIVE_S: Final = 1.0
#: Results messages on their way at once: what finishes meanwhile becomes one larger batch,
#: which fits one commit of the broker.
MAX_IN_FLIGHT: Final = 2
#: Beyond its timeout an attempt has this long to end by itself.
OVERDUE_S: Final = 0.5


class WorkerSession:
    """Decides all a worker does; each input returns what is to be done, in order.

    Args:
        profile: who the worker is.
        kept: results of earlier runs, from the outbox.
    """

    def __init__(self, profile: Profile, kept: Sequence[KeptResult] = ()) -> None:
        self.profile = profile
        self.brokers: dict[str, BrokerSession] = {}
        self.flow = FlowControl(profile.slots)
        self.is_draining = False
        self.completed = self.failed = self.running = 0
        self._abandoned: dict[bytes, str] = {}  # token -> link: still running, not wanted
        self._kept = KeptResults(kept)
        #: the LLM services; what changes there is told by a `tick`
        self.services = ServiceOffer()
        self._seq = 0

    @property
    def stuck(self) -> int:
        """How many slots are at something that nobody wants any more."""
        return self.flow.stuck

    @property
    def is_outbox_full(self) -> bool:
        """True when too many results await their acknowledgement."""
        return self._kept.is_full

    @property
    def is_idle(self) -> bool:
        """True when nothing waits or runs, or awaits a broker that is there."""
        return all(broker.is_idle for broker in self.brokers.values())

    def next_deadline(self) -> float:
        """Return when `tick` has something to do next (monotonic); far away if never."""
        dues = [broker.next_deadline(RESEND_S) for broker in self.brokers.values()]
        dues.append(self.services.due)
        return min(dues)

    # -------------------------------------------------------------------- transports

    def link_up(self, link: str, now: float, server_key: bytes | None = None) -> list[WorkerEffect]:
        """A transport to the broker with this public key is there: open the session."""
        broker = self.brokers.setdefault(link, BrokerSession(link))
        broker.server_key = server_key
        broker.is_up, broker.heard = True, now
        return [self._hello(broker, now)]

    def link_down(self, link: str, now: float, refusal: str = "") -> list[WorkerEffect]:
        """The transport is gone; what is held stays, and cheap results go to the disk.

        `refusal`: why who is there does not let us in; empty: it is not that.
        """
        broker = self.brokers.get(link)
        if broker is None:
            return []
        broker.is_up = False
        broker.lose("it does not let this worker in" if refusal else "the connection broke")
        broker.refusal = refusal or broker.refusal
        return self._kept.save(broker) + self._offer(now, but=broker)

    def forget_link(self, link: str) -> list[WorkerEffect]:
        """The link will not come back; its attempts are cancelled, its results stay owed."""
        broker = self.brokers.pop(link, None)
        return [] if broker is None else self._strand(broker)

    def woke(self, now: float) -> list[WorkerEffect]:
        """The machine slept: no connection can be trusted."""
        up = [broker for broker in self.brokers.values() if broker.is_up]
        return [Rebuild(broker.key, "the machine slept") for broker in up]

    # ---------------------------------------------------------------------- receiving

    def receive(self, message: ToWorker, link: str, now: float) -> list[WorkerEffect]:
        """Take in one message of a broker."""
        broker = self.brokers.get(link)
        if broker is None:
            return []
        broker.heard = now
        match message:
            case Work():
                return self._work(message, broker, now)
            case Received(seq=seq):
                return self._received(seq, broker, now)
            case Placed():
                broker.placing = dict(zip(message.ids, message.placements, strict=True))
                return []
            case Warm(placement=placement):
                return [] if self.is_draining else [WarmUp(placement)]
            case Stop(ids=ids):
                return self._abandon(broker, ids)
            case Recall(count=count):
                return [TakeBack(link, count)]
            case Listening(ids=ids, is_on=is_on):
                return [Listened([each for each in ids if each in broker.open], is_on)]
            case _:
                return self._of_link(message, broker, now)

    def _of_link(
        self,
        message: Goodbye | Welcome | Rehello | Refused | Beat,
        broker: BrokerSession,
        now: float,
    ) -> list[WorkerEffect]:
        """Take in how a session stands."""
        match message:
            case Beat(epoch=epoch):
                is_new = broker.is_welcome and epoch != broker.epoch
                return [self._hello(broker, now)] if is_new else []
            case Welcome():
                return self._welcome(message, broker, now)
            case Rehello():
                return [self._hello(broker, now)]
            case Refused():
                return self._refused(message, broker, now)
            case Goodbye(reason=reason):
                broker.lose(f"it left: {reason}")
                broker.next_hello = now + HELLO_S
                left = f"the orchestrator left: {reason}"
                return [*self._kept.save(broker), Trouble(broker.key, "broker.draining", left)]
            case _:
                assert_never(message)

    def _work(self, message: Work, broker: BrokerSession, now: float) -> list[WorkerEffect]:
        placing, broker.placing = broker.placing, {}
        if not broker.broker_id:
            return []  # nobody has said yet whose it is; the next HELLO tells that it is not held
        broker.work_seq = message.seq
        held, attempts = broker.open, list[Attempt]()
        effects = [each for seq in message.received for each in self._received(seq, broker, now)]
        for group in message.groups:
            ids = group.ids
            if not held.keys().isdisjoint(ids):  # handed out anew: the older attempt is stale
                effects += self._abandon(broker, [task_id for task_id in ids if task_id in held])
            held.update(zip(ids, group.tokens, strict=True))
            shared = (broker.key, group.type, group.timeout_s, group.is_listened)
            columns = (ids, group.tokens, group.payloads)
            attempts += map(Attempt, *map(repeat, shared), *columns)
        if placing:
            attempts, placed = broker.place(attempts, placing)
            effects += self.taken_back(placed, now) if self.is_draining else [StartPlaced(placed)]
        if attempts:
            effects.append(Start(attempts))
        if self.is_draining:
            effects.append(TakeBack(broker.key, len(attempts)))
        elif len(self.brokers) > 1:
            excess = self._taken() - self.flow.room - self.flow.prefetch - len(self.brokers)
            if excess > 0:
                effects.append(TakeBack(broker.key, min(excess, len(attempts))))
            effects += self._offer(now, but=broker)
        return effects

    def _welcome(self, message: Welcome, broker: BrokerSession, now: float) -> list[WorkerEffect]:
        if not self.profile.credentials.accept(broker.server_key, message.proof):
            return self._refused(broker_session.unproven(message), broker, now)
        for other in self.brokers.values():
            if other is not broker and other.is_welcome and other.broker_id == message.broker_id:
                # Two links to one broker: the one with work stays, and says what both hold.
                keep, gone = (broker, other) if broker.open and not other.open else (other, broker)
                retire = Retire(gone.key, message.broker_id)
                return [*self._strand(gone), retire, self._hello(keep, now)]
        effects: list[WorkerEffect] = [Joined(broker.key, message.broker_id)]
        if broker.broker_id not in ("", message.broker_id):  # another lives at this address now
            effects += self._strand(broker)
        broker.is_welcome, broker.work_seq, broker.lost, broker.refusal = True, 0, "", ""
        broker.placing = {}
        broker.broker_id, broker.epoch = message.broker_id, message.epoch
        broker.heartbeat_s = max(0.1, message.heartbeat_s)
        broker.lease_s = max(broker.heartbeat_s * 2, message.lease_s)
        if broker.next_heartbeat > 0.0:  # else what is offered has changed since the HELLO
            broker.next_heartbeat = now + broker.heartbeat_s
        if message.dropped_ids:
            effects += self._abandon(broker, message.dropped_ids)
            effects += self._kept.forget([broker.drop(set(message.dropped_ids))])
        self._kept.hand_over(broker)
        broker.take_back_unacknowledged(now + 1)
        if self.services.is_any:
            effects += self.services.all_told(broker, now)
        return effects + self._pass_on(broker) + self._flush(broker, now) + self._offer(now)

    def _refused(self, message: Refused, broker: BrokerSession, now: float) -> list[WorkerEffect]:
        trouble = Trouble(broker.key, message.code, message.message)
        suffix = f"-{self.profile.boot_id[:8]}"
        if message.code == "worker.id_taken" and not self.profile.worker_id.endswith(suffix):
            self.profile = replace(self.profile, worker_id=self.profile.worker_id[:119] + suffix)
            return [trouble, self._hello(broker, now)]
        if not broker.is_welcome and message.seq == 0:
            broker.refusal = message.message  # silence until the next HELLO is no fault:
            broker.heard = broker.next_hello = now + max(REFUSED_PAUSE_S, message.retry_after_s)
        return [trouble]

    def _received(self, seq: int, broker: BrokerSession, now: float) -> list[WorkerEffect]:
        batch = broker.unacknowledged.pop(seq, None)
        if batch is None:
            return []
        was_full = self.is_outbox_full
        effects = self._kept.forget([batch]) + self._flush(broker, now)
        return effects + (self._offer(now) if was_full else [])

    # ----------------------------------------------------------------- what the slots say

    def finished(self, ended: Iterable[Ended], now: float) -> list[WorkerEffect]:
        """Attempts have ended: hand the results in, the expensive ones by way of the disk."""
        brokers, abandoned = self.brokers, self._abandoned
        touched: dict[str, BrokerSession] = {}
        keep: list[KeptResult] = []
        given: dict[tuple[str, bytes | None], list[tuple[str, bytes]]] = {}
        total_s, elsewhere, results, completed, size = 0.0, 0, 0, 0, 0
        for link, task_id, token, kind, payload, duration_s in ended:
            broker = brokers.get(link)
            if (abandoned and abandoned.pop(token, None) is not None) or broker is None:
                continue
            if broker.open.get(task_id) == token:
                del broker.open[task_id]
                if broker.placed and broker.placed.pop(task_id, None) is not None and kind >= 0:
                    elsewhere += 1
                    total_s -= duration_s
            touched[link] = broker
            if kind < 0:
                if kind == UNAVAILABLE:
                    given.setdefault((link, payload), []).append((task_id, token))
                continue
            total_s += duration_s
            results += 1
            completed += kind == SUCCEEDED
            size += len(payload)
            if duration_s > EXPENSIVE_S or not broker.is_welcome:
                keep.append(KeptResult(broker.broker_id, task_id, token, kind, payload))
            broker.collect(task_id, token, kind, payload)
        self.completed += completed
        self.failed += results - completed
        self._kept.count(results, size)
        self.flow.measure(total_s, results - elsewhere)
        effects = self._kept.keep(keep) if keep else []
        for broker in touched.values():
            effects += self._flush(broker, now)
        effects += self._give_back(given, now)
        if len(brokers) > 1 or self.stuck or self.is_outbox_full:
            effects += self._offer(now)
        return effects

    def taken_back(self, attempts: Sequence[Attempt], now: float) -> list[WorkerEffect]:
        """These had not started and are given back."""
        given: dict[tuple[str, bytes | None], list[tuple[str, bytes]]] = {}
        for attempt in attempts:
            link, task_id, token = attempt.link, attempt.id, attempt.token
            broker = self.brokers.get(link)
            if self._abandoned.pop(token, None) is not None or broker is None:
                continue
            if broker.close(task_id, token):
                given.setdefault((link, None), []).append((task_id, token))
        return self._give_back(given, now)

    def chunks(self, pieces: Iterable[OutputPiece]) -> list[WorkerEffect]:
        """Pass partial output on; without a session it is kept for the next, as much as fits."""
        touched: dict[str, BrokerSession] = {}
        for link, task_id, token, number, payload in pieces:
            broker = self.brokers.get(link)
            if broker is not None and broker.open.get(task_id) == token:
                broker.keep_piece(task_id, token, number, payload)
                touched[link] = broker
        return [each for broker in touched.values() for each in self._pass_on(broker)]

    def _pass_on(self, broker: BrokerSession) -> list[WorkerEffect]:
        return (
            [SendOn(broker.key, part) for part in broker.take_pieces()] if broker.is_welcome else []
        )

    def watch(self, running: Sequence[Running], now: float) -> list[WorkerEffect]:
        """Look at what the slots are at; call it about once a second.

        An attempt past its time is cancelled and reported as failed; its slot stays taken,
        and counts as stuck, until the handler returns.
        """
        effects: list[WorkerEffect] = []
        ended: list[Ended] = []
        for attempt, started in running:
            timeout_s, token = attempt.timeout_s, attempt.token
            if now - started <= timeout_s + OVERDUE_S or token in self._abandoned:
                continue
            duration_s = round(now - started, 3)
            error = f"TimeoutError: not finished after {timeout_s:g} s"
            payload = failure(self.profile.worker_id, error, duration_s)
            ended.append((attempt.link, attempt.id, token, FAILED, payload, duration_s))
            effects.append(Abort([token]))
        if ended:
            effects += self.finished(ended, now)
            self._abandoned.update((token, link) for link, _, token, *_ in ended)
        self.running = len(running)
        stuck = sum(each.placement is None and each.token in self._abandoned for each, _ in running)
        if stuck != self.flow.stuck:
            self.flow.stuck = stuck
            effects += self._offer(now)
        return effects

    def offer(self, task_types: Iterable[str], models: Iterable[str], trouble: str = "") -> None:
        """Change what the worker offers; the heartbeat of the next `tick` tells it."""
        types, models = tuple(task_types), tuple(models)
        self.profile = replace(self.profile, task_types=types, models=models, trouble=trouble)
        for broker in self.brokers.values():
            broker.next_heartbeat = 0.0

    # ------------------------------------------------------------------------- time

    def tick(self, now: float) -> list[WorkerEffect]:
        """Do what is due."""
        effects = self._tell_services(now) if self.services.is_any else []
        for broker in self.brokers.values():
            if not broker.is_up:
                continue
            if now - broker.heard > broker.lease_s:
                broker.heard, broker.lost = now, f"silent for {broker.lease_s:g} s"
                effects.append(Rebuild(broker.key, broker.lost))
            elif not broker.is_welcome:
                if now >= broker.next_hello:
                    effects.append(self._hello(broker, now))
            else:
                if broker.unacknowledged:
                    broker.take_back_unacknowledged(now - RESEND_S)
                effects += self._flush(broker, now)
                if now >= broker.next_heartbeat or (self.flow.is_disk_bad and broker.window):
                    effects.append(self._heartbeat(broker, now))
        return effects

    def drain(self, now: float) -> list[WorkerEffect]:
        """Take nothing new and give back what has not started."""
        self.is_draining = True
        told = self._offer(now) + self._tell_services(now)
        return told + [
            TakeBack(broker.key, len(broker.open), is_of_all=True)
            for broker in self.brokers.values()
            if broker.open
        ]

    def leave(self, reason: str) -> list[WorkerEffect]:
        """Say goodbye; what is unacknowledged goes to the disk first."""
        effects: list[WorkerEffect] = []
        for broker in self.brokers.values():
            effects += self._kept.save(broker)
            if broker.is_welcome:
                effects.append(SendOn(broker.key, Goodbye(reason)))
        return effects

    # ------------------------------------------------------------------------ telling

    def _hello(self, broker: BrokerSession, now: float) -> SendOn:
        broker.is_welcome = False
        broker.next_hello, broker.next_heartbeat = now + HELLO_S, now + broker.heartbeat_s
        # What services answer comes placed, once the broker knows them: until then nothing comes.
        broker.window = window = 0 if self.services.is_any else self._window(broker, now)
        return SendOn(broker.key, hello(self.profile, window, broker, self._kept.owed()))

    def _tell_services(self, now: float) -> list[WorkerEffect]:
        is_open = not (self.is_draining or self.is_outbox_full or self.flow.is_disk_bad)
        return self.services.tell(self.brokers.values(), now, is_open=is_open)

    def _heartbeat(self, broker: BrokerSession, now: float) -> SendOn:
        broker.next_heartbeat = now + broker.heartbeat_s
        broker.window = window = self._window(broker, now)
        me, held = self.profile, broker.held()[0]
        names = (list(me.task_types), list(me.models))
        row = (broker.work_seq, window, self.running, self.stuck, *names, held, me.trouble)
        return SendOn(broker.key, Heartbeat(*row))

    def _flush(self, broker: BrokerSession, now: float) -> list[WorkerEffect]:
        """Send results, a few messages at a time."""
        effects: list[WorkerEffect] = []
        while broker.is_welcome and broker.waiting and len(broker.unacknowledged) < MAX_IN_FLIGHT:
            batch = broker.waiting.pop(0)
            self._seq += 1
            batch.sent = now
            broker.unacknowledged[self._seq] = batch
            broker.window = window = self._window(broker, now)
            kinds = bytes(batch.kinds)
            results = Results(self._seq, window, batch.ids, batch.tokens, kinds, batch.payloads)
            effects.append(SendOn(broker.key, results))
        return effects

    def _give_back(
        self, given: Mapping[tuple[str, bytes | None], Sequence[tuple[str, bytes]]], now: float
    ) -> list[WorkerEffect]:
        """Return attempts, (task id, token), by link and the payload that has the reason."""
        effects: list[WorkerEffect] = []
        for (link, payload), rows in given.items():
            broker = self.brokers[link]
            broker.window = window = self._window(broker, now)
            if broker.is_welcome:  # else the next HELLO tells that they are not held
                ids, tokens = map(list, zip(*rows, strict=True))
                reason = "" if payload is None else reason_in(payload)
                effects.append(SendOn(link, Release(window, ids, tokens, reason)))
        return effects

    def _offer(self, now: float, but: BrokerSession | None = None) -> list[WorkerEffect]:
        """Tell the brokers at once whose window closes or opens."""
        effects: list[WorkerEffect] = []
        for broker in self.brokers.values():
            if broker is but or not broker.is_welcome:
                continue
            window = self._window(broker, now)
            if (window == 0) != (broker.window == 0) or (
                not broker.in_slots and window > broker.window
            ):
                effects.append(self._heartbeat(broker, now))
        return effects

    def _abandon(self, broker: BrokerSession, ids: Iterable[str]) -> list[WorkerEffect]:
        """Let attempts go: their slots stay taken until they end, and nothing is told."""
        tokens = broker.take_open(ids)
        if not tokens:
            return []
        self._abandoned.update(zip(tokens, repeat(broker.key), strict=False))
        return [Abort(tokens)]

    def _strand(self, broker: BrokerSession) -> list[WorkerEffect]:
        """This link leads to its broker no more: results wait for another, attempts go."""
        effects = self._kept.strand(broker)
        return effects + self._abandon(broker, list(broker.open))

    def _taken(self) -> int:
        return sum(broker.in_slots for broker in self.brokers.values())

    def _window(self, broker: BrokerSession, now: float) -> int:
        self.flow.is_closed = self.is_draining or self.is_outbox_full
        return self.flow.window(broker, self.brokers.values(), now)
