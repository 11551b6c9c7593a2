"""The worker's brain: one session with each orchestrator, and the slots shared among them.

Pure: no sockets, clock, threads or disk. Attempts travel as plain tuples in columns
(`core.worker_effects`), so that a task costs a dict insert and a few appends here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Final, assert_never

from d8mesh.core.messages import (
    FAILED,
    SUCCEEDED,
    Beat,
    Goodbye,
    Heartbeat,
    Listening,
    Recall,
    Received,
    Refused,
    Rehello,
    Release,
    Results,
    Stop,
    ToWorker,
    Welcome,
    Work,
)
from d8mesh.core.worker_effects import (
    UNAVAILABLE,
    Abort,
    Attempt,
    Ended,
    Forget,
    Joined,
    Keep,
    Kept,
    Listened,
    Piece,
    Rebuild,
    Retire,
    Running,
    Send,
    Start,
    TakeBack,
    Trouble,
    WorkerEffect,
)
from d8mesh.core.worker_line import Bundle, Line, Profile, failure, hello, reason_in
from d8mesh.core.worker_share import Share

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
#: Unacknowledged results: beyond either bound no new work is taken.
MAX_KEPT_RESULTS: Final = 50_000
MAX_KEPT_BYTES: Final = 256 * 1024 * 1024


class WorkerSession:
    """Decides all a worker does; each input returns what is to be done, in order.

    Args:
        profile: who the worker is.
        kept: results of earlier runs, from the outbox.
    """

    def __init__(self, profile: Profile, kept: Sequence[Kept] = ()) -> None:
        self.profile = profile
        self.lines: dict[str, Line] = {}
        self.share = Share(profile.slots)
        self.is_draining = False
        self.completed = self.failed = self.running = 0
        self._abandoned: dict[bytes, str] = {}  # token -> link: still in a slot, not wanted
        self._on_disk: set[bytes] = {row.token for row in kept}
        self._orphans: dict[str, list[Kept]] = {}  # by broker id, of links that are gone
        self._kept_count = len(kept)
        self._kept_bytes = sum(len(row.payload) for row in kept)
        self._seq = 0
        for row in kept:
            self._orphans.setdefault(row.broker_id, []).append(row)

    @property
    def stuck(self) -> int:
        """How many slots are at something that nobody wants any more."""
        return self.share.stuck

    @property
    def is_outbox_full(self) -> bool:
        """True when too many results await their acknowledgement."""
        return self._kept_count >= MAX_KEPT_RESULTS or self._kept_bytes >= MAX_KEPT_BYTES

    @property
    def is_idle(self) -> bool:
        """True when nothing waits or runs, or awaits a broker that is there."""
        return not any(
            line.open or (line.is_welcome and (line.unacknowledged or line.waiting))
            for line in self.lines.values()
        )

    def next_deadline(self) -> float:
        """Return when `tick` has something to do next (monotonic); far away if never."""
        dues = [1e12]
        for line in self.lines.values():
            if line.is_up:
                dues.append(line.heard + line.lease_s)
                dues.append(line.next_heartbeat if line.is_welcome else line.next_hello)
                dues += [bundle.sent + RESEND_S for bundle in line.unacknowledged.values()]
        return min(dues)

    # -------------------------------------------------------------------- transports

    def link_up(self, link: str, now: float) -> list[WorkerEffect]:
        """A transport to a broker is there: open the session."""
        line = self.lines.setdefault(link, Line(link))
        line.is_up, line.heard = True, now
        return [self._hello(line, now)]

    def link_down(self, link: str, now: float) -> list[WorkerEffect]:
        """The transport is gone; what is held stays, and cheap results go to the disk."""
        line = self.lines.get(link)
        if line is None:
            return []
        line.is_up = False
        line.lose("the connection broke")
        return self._save(line) + self._offer(now, but=line)

    def forget_link(self, link: str) -> list[WorkerEffect]:
        """The link will not come back; its attempts are cancelled, its results stay owed."""
        line = self.lines.pop(link, None)
        return [] if line is None else self._strand(line)

    def woke(self, now: float) -> list[WorkerEffect]:
        """The machine slept: no connection can be trusted."""
        up = [line for line in self.lines.values() if line.is_up]
        return [Rebuild(line.key, "the machine slept") for line in up]

    # ---------------------------------------------------------------------- receiving

    def receive(self, message: ToWorker, link: str, now: float) -> list[WorkerEffect]:
        """Take in one message of a broker."""
        line = self.lines.get(link)
        if line is None:
            return []
        line.heard = now
        match message:
            case Work():
                return self._work(message, line, now)
            case Received(seq=seq):
                return self._received(seq, line, now)
            case Beat(epoch=epoch):
                is_new = line.is_welcome and epoch != line.epoch
                return [self._hello(line, now)] if is_new else []
            case Welcome():
                return self._welcome(message, line, now)
            case Rehello():
                return [self._hello(line, now)]
            case Refused():
                return self._refused(message, line, now)
            case Stop(ids=ids):
                return self._abandon(line, ids)
            case Recall(count=count):
                return [TakeBack(link, count)]
            case Listening(ids=ids, is_on=is_on):
                return [Listened([each for each in ids if each in line.open], is_on)]
            case Goodbye(reason=reason):
                line.lose(f"it left: {reason}")
                line.next_hello = now + HELLO_S
                left = Trouble(link, "broker.draining", f"the orchestrator left: {reason}")
                return [*self._save(line), left]
            case _:
                assert_never(message)

    def _work(self, message: Work, line: Line, now: float) -> list[WorkerEffect]:
        if not line.broker_id:
            return []  # nobody has said yet whose it is; the next HELLO tells that it is not held
        line.work_seq = message.seq
        held, attempts = line.open, list[Attempt]()
        effects = [each for seq in message.received for each in self._received(seq, line, now)]
        for group in message.groups:
            ids = group.ids
            if not held.keys().isdisjoint(ids):  # handed out anew: the older attempt is stale
                effects += self._abandon(line, [task_id for task_id in ids if task_id in held])
            held.update(zip(ids, group.tokens, strict=True))
            shared = (line.key, group.type, group.timeout_s, group.is_listened)
            columns = (ids, group.tokens, group.payloads)
            attempts += zip(*map(repeat, shared), *columns, strict=False)
        effects.append(Start(attempts))
        excess = self._taken() - self.share.room - self.share.prefetch - len(self.lines)
        if self.is_draining:
            effects.append(TakeBack(line.key, len(attempts)))
        elif len(self.lines) > 1:
            if excess > 0:
                effects.append(TakeBack(line.key, min(excess, len(attempts))))
            effects += self._offer(now, but=line)
        return effects

    def _welcome(self, message: Welcome, line: Line, now: float) -> list[WorkerEffect]:
        for other in self.lines.values():
            if other is not line and other.is_welcome and other.broker_id == message.broker_id:
                # Two links to one broker: the one with work stays, and says what both hold.
                keep, gone = (line, other) if line.open and not other.open else (other, line)
                retire = Retire(gone.key, message.broker_id)
                return [*self._strand(gone), retire, self._hello(keep, now)]
        effects: list[WorkerEffect] = [Joined(line.key, message.broker_id)]
        if line.broker_id not in ("", message.broker_id):  # another lives at this address now
            effects += self._strand(line)
        line.is_welcome, line.work_seq, line.lost = True, 0, ""
        line.broker_id, line.epoch = message.broker_id, message.epoch
        line.heartbeat_s = max(0.1, message.heartbeat_s)
        line.lease_s = max(line.heartbeat_s * 2, message.lease_s)
        if line.next_heartbeat > 0.0:  # else what is offered has changed since the HELLO
            line.next_heartbeat = now + line.heartbeat_s
        if message.dropped_ids:
            effects += self._abandon(line, message.dropped_ids)
            effects += self._forget([line.drop(set(message.dropped_ids))])
        for row in self._orphans.pop(line.broker_id, ()):
            line.collect(row.task_id, row.token, row.kind, row.payload)
        line.take_back_unacknowledged(now + 1)
        return effects + self._pass_on(line) + self._flush(line, now) + self._offer(now)

    def _refused(self, message: Refused, line: Line, now: float) -> list[WorkerEffect]:
        trouble = Trouble(line.key, message.code, message.message)
        suffix = f"-{self.profile.boot_id[:8]}"
        if message.code == "worker.id_taken" and not self.profile.worker_id.endswith(suffix):
            self.profile = replace(self.profile, worker_id=self.profile.worker_id[:119] + suffix)
            return [trouble, self._hello(line, now)]
        if not line.is_welcome and message.seq == 0:
            line.refusal = message.message  # silence until the next HELLO is no fault:
            line.heard = line.next_hello = now + max(REFUSED_PAUSE_S, message.retry_after_s)
        return [trouble]

    def _received(self, seq: int, line: Line, now: float) -> list[WorkerEffect]:
        bundle = line.unacknowledged.pop(seq, None)
        if bundle is None:
            return []
        was_full = self.is_outbox_full
        effects = self._forget([bundle]) + self._flush(line, now)
        return effects + (self._offer(now) if was_full else [])

    # ----------------------------------------------------------------- what the slots say

    def finished(self, ended: Iterable[Ended], now: float) -> list[WorkerEffect]:
        """Attempts have ended: hand the results in, the expensive ones by way of the disk."""
        lines, abandoned = self.lines, self._abandoned
        touched: dict[str, Line] = {}
        keep: list[Kept] = []
        given: dict[tuple[str, bytes], list[tuple[str, bytes]]] = {}
        total_s, measured, results, completed, size = 0.0, 0, 0, 0, 0
        for link, task_id, token, kind, payload, duration_s in ended:
            line = lines.get(link)
            if (abandoned and abandoned.pop(token, None) is not None) or line is None:
                continue
            if line.open.get(task_id) == token:
                del line.open[task_id]
            touched[link] = line
            if kind < 0:
                if kind == UNAVAILABLE:
                    given.setdefault((link, payload), []).append((task_id, token))
                continue
            total_s += duration_s
            measured += 1
            results += 1
            completed += kind == SUCCEEDED
            size += len(payload)
            if duration_s > EXPENSIVE_S or not line.is_welcome:
                keep.append(Kept(line.broker_id, task_id, token, kind, payload))
            line.collect(task_id, token, kind, payload)
        self.completed += completed
        self.failed += results - completed
        self._kept_count += results
        self._kept_bytes += size
        self.share.measure(total_s, measured)
        effects: list[WorkerEffect] = []
        if keep:
            self._on_disk.update(row.token for row in keep)
            effects.append(Keep(keep))
        for line in touched.values():
            effects += self._flush(line, now)
        for (link, reason), rows in given.items():
            ids, tokens = map(list, zip(*rows, strict=True))
            effects += self._give_back(lines[link], ids, tokens, now, reason=reason_in(reason))
        if len(lines) > 1 or self.stuck or self.is_outbox_full:
            effects += self._offer(now)
        return effects

    def taken_back(self, attempts: Sequence[Attempt], now: float) -> list[WorkerEffect]:
        """These had not started and are given back."""
        given: dict[str, tuple[list[str], list[bytes]]] = {}
        for link, _, _, _, task_id, token, _ in attempts:
            line = self.lines.get(link)
            if self._abandoned.pop(token, None) is not None or line is None:
                continue
            if line.open.get(task_id) == token:
                del line.open[task_id]
                ids, tokens = given.setdefault(link, ([], []))
                ids.append(task_id)
                tokens.append(token)
        effects: list[WorkerEffect] = []
        for link, (ids, tokens) in given.items():
            effects += self._give_back(self.lines[link], ids, tokens, now)
        return effects

    def chunks(self, pieces: Iterable[Piece]) -> list[WorkerEffect]:
        """Pass partial output on; without a session it is kept for the next, as much as fits."""
        touched: dict[str, Line] = {}
        for link, task_id, token, number, payload in pieces:
            line = self.lines.get(link)
            if line is not None and line.open.get(task_id) == token:
                line.keep_piece(task_id, token, number, payload)
                touched[link] = line
        return [each for line in touched.values() for each in self._pass_on(line)]

    def _pass_on(self, line: Line) -> list[WorkerEffect]:
        return [Send(line.key, part) for part in line.take_pieces()] if line.is_welcome else []

    def watch(self, running: Sequence[Running], now: float) -> list[WorkerEffect]:
        """Look at what the slots are at; call it about once a second.

        An attempt past its time is cancelled and reported as failed; its slot stays taken,
        and counts as stuck, until the handler returns.
        """
        effects: list[WorkerEffect] = []
        ended: list[Ended] = []
        for attempt, started in running:
            link, _, timeout_s, _, task_id, token, _ = attempt
            if now - started <= timeout_s + OVERDUE_S or token in self._abandoned:
                continue
            duration_s = round(now - started, 3)
            error = f"TimeoutError: not finished after {timeout_s:g} s"
            payload = failure(self.profile.worker_id, error, duration_s)
            ended.append((link, task_id, token, FAILED, payload, duration_s))
            effects.append(Abort([token]))
        if ended:
            effects += self.finished(ended, now)
            self._abandoned.update((row[2], row[0]) for row in ended)
        self.running = len(running)
        stuck = sum(row.attempt[5] in self._abandoned for row in running)
        if stuck != self.share.stuck:
            self.share.stuck = stuck
            effects += self._offer(now)
        return effects

    def offer(self, task_types: Iterable[str], models: Iterable[str], trouble: str = "") -> None:
        """Change what the worker offers; the heartbeat of the next `tick` tells it."""
        types, models = tuple(task_types), tuple(models)
        self.profile = replace(self.profile, task_types=types, models=models, trouble=trouble)
        for line in self.lines.values():
            line.next_heartbeat = 0.0

    # ------------------------------------------------------------------------- time

    def tick(self, now: float) -> list[WorkerEffect]:
        """Do what is due."""
        effects: list[WorkerEffect] = []
        for line in self.lines.values():
            if not line.is_up:
                continue
            if now - line.heard > line.lease_s:
                line.heard, line.lost = now, f"silent for {line.lease_s:g} s"
                effects.append(Rebuild(line.key, line.lost))
            elif not line.is_welcome:
                if now >= line.next_hello:
                    effects.append(self._hello(line, now))
            else:
                if line.unacknowledged:
                    line.take_back_unacknowledged(now - RESEND_S)
                effects += self._flush(line, now)
                if now >= line.next_heartbeat:
                    effects.append(self._heartbeat(line, now))
        return effects

    def drain(self, now: float) -> list[WorkerEffect]:
        """Take nothing new and give back what has not started."""
        self.is_draining = True
        told = self._offer(now)
        return told + [
            TakeBack(line.key, len(line.open)) for line in self.lines.values() if line.open
        ]

    def leave(self, reason: str) -> list[WorkerEffect]:
        """Say goodbye; what is unacknowledged goes to the disk first."""
        effects: list[WorkerEffect] = []
        for line in self.lines.values():
            effects += self._save(line)
            if line.is_welcome:
                effects.append(Send(line.key, Goodbye(reason)))
        return effects

    # ------------------------------------------------------------------------ telling

    def _hello(self, line: Line, now: float) -> Send:
        line.is_welcome = False
        line.next_hello, line.next_heartbeat = now + HELLO_S, now + line.heartbeat_s
        owed = [row for rows in self._orphans.values() for row in rows]
        line.window = window = self._window(line, now)
        return Send(line.key, hello(self.profile, window, line, owed))

    def _heartbeat(self, line: Line, now: float) -> Send:
        line.next_heartbeat = now + line.heartbeat_s
        line.window = window = self._window(line, now)
        me, held = self.profile, line.held()[0]
        names = (list(me.task_types), list(me.models))
        row = (line.work_seq, window, self.running, self.stuck, *names, held, me.trouble)
        return Send(line.key, Heartbeat(*row))

    def _flush(self, line: Line, now: float) -> list[WorkerEffect]:
        """Send results, a few messages at a time."""
        effects: list[WorkerEffect] = []
        while line.is_welcome and line.waiting and len(line.unacknowledged) < MAX_IN_FLIGHT:
            bundle = line.waiting.pop(0)
            self._seq += 1
            bundle.sent = now
            line.unacknowledged[self._seq] = bundle
            line.window = window = self._window(line, now)
            kinds = bytes(bundle.kinds)
            results = Results(self._seq, window, bundle.ids, bundle.tokens, kinds, bundle.payloads)
            effects.append(Send(line.key, results))
        return effects

    def _give_back(
        self, line: Line, ids: list[str], tokens: list[bytes], now: float, *, reason: str = ""
    ) -> list[WorkerEffect]:
        line.window = window = self._window(line, now)
        if not line.is_welcome:  # the next HELLO tells that they are not held
            return []
        return [Send(line.key, Release(window, ids, tokens, reason))]

    def _offer(self, now: float, but: Line | None = None) -> list[WorkerEffect]:
        """Tell the brokers at once whose window closes or opens."""
        effects: list[WorkerEffect] = []
        for line in self.lines.values():
            if line is but or not line.is_welcome:
                continue
            window = self._window(line, now)
            if (window == 0) != (line.window == 0) or (not line.open and window > line.window):
                effects.append(self._heartbeat(line, now))
        return effects

    # ------------------------------------------------------------------------ private

    def _abandon(self, line: Line, ids: Iterable[str]) -> list[WorkerEffect]:
        """Let attempts go: their slots stay taken until they end, and nothing is told."""
        tokens = [token for task_id in ids if (token := line.open.pop(task_id, None)) is not None]
        if not tokens:
            return []
        self._abandoned.update(zip(tokens, repeat(line.key), strict=False))
        return [Abort(tokens)]

    def _strand(self, line: Line) -> list[WorkerEffect]:
        """This link leads to its broker no more: results wait for another, attempts go."""
        effects = self._save(line)
        own = self._orphans.setdefault(line.broker_id, [])
        own += [Kept(line.broker_id, *row) for bundle in line.bundles() for row in bundle.rows()]
        line.unacknowledged, line.waiting = {}, []
        return effects + self._abandon(line, list(line.open))

    def _save(self, line: Line) -> list[WorkerEffect]:
        """Put results that are only in memory on the disk too."""
        on_disk = self._on_disk
        rows = [
            Kept(line.broker_id, *row)
            for bundle in line.bundles()
            for row in bundle.rows()
            if row[1] not in on_disk
        ]
        on_disk.update(row.token for row in rows)
        return [Keep(rows)] if rows else []

    def _forget(self, bundles: Iterable[Bundle]) -> list[WorkerEffect]:
        """These results need not be kept any longer."""
        tokens: list[bytes] = []
        for bundle in bundles:
            self._kept_bytes -= bundle.size
            self._kept_count -= len(bundle.ids)
            if self._on_disk:
                tokens += [token for token in bundle.tokens if token in self._on_disk]
        self._on_disk.difference_update(tokens)
        return [Forget(tokens)] if tokens else []

    def _taken(self) -> int:
        return sum(len(line.open) for line in self.lines.values())

    def _window(self, line: Line, now: float) -> int:
        self.share.is_closed = self.is_draining or self.is_outbox_full
        return self.share.window(line, self.lines.values(), now)
