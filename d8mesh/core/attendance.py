"""What mesh workers say: they join, live, hand in results, give back, leave."""

from __future__ import annotations

from typing import Final

from d8mesh.core.addresses import is_loopback
from d8mesh.core.effects import Peer
from d8mesh.core.endings import Endings
from d8mesh.core.handout import Handout
from d8mesh.core.messages import (
    REFUSED,
    SUCCEEDED,
    VERSIONS,
    Beat,
    Chunks,
    Heartbeat,
    Recall,
    Received,
    Refused,
    Release,
    Results,
    Welcome,
    WorkerHello,
)
from d8mesh.core.pool import Pool
from d8mesh.core.records import Task
from d8mesh.core.returns import LEAVING, MISLAID, UNAVAILABLE, UNSTARTED, Returns
from d8mesh.core.roster import Dialect, Seat
from d8mesh.core.streaming import Streaming
from d8mesh.core.task import Adopted, Recounted, TaskState
from d8mesh.core.tokens import Claim, worker_tag

#: Prefetched tasks are called back when their worker made no progress for this long.
RECALL_AFTER_S: Final = 0.5
#: How long the acknowledgement of a result that came alone waits for a hand-out to go with:
#: many times the way of a quick task, too short for a worker to say anything again.
OWED_S: Final = 0.02
#: Who is cut off at once was last heard within a heartbeat of each other; one may have got lost.
CUT_HEARTBEATS: Final = 2
#: So often a task is spared when it was with who fell silent. A worker that dies under it and comes
#: back under another id, alone on its network, looks like a cut every time.
MAX_CUTS: Final = 10
#: Earlier starts of a worker that are told from a new one, if they prove to be alive still.
MAX_DISPLACED: Final = 8


class Attendance:
    """Serves the mesh workers of a pool."""

    def __init__(
        self,
        pool: Pool,
        handout: Handout,
        endings: Endings,
        returns: Returns,
        streaming: Streaming,
    ) -> None:
        self._pool = pool
        self._streaming = streaming
        self._returns = returns
        self._handout = handout
        self._endings = endings
        #: seats whose results came in with this wake-up, and how far their hand-outs were
        self._reporting: list[tuple[Seat, int]] = []
        #: when that was found out, and when somebody beyond this machine was last heard
        self._last_word = (-1.0, -1.0)

    # --------------------------------------------------------------------- joining

    def hello(self, message: WorkerHello, peer: Peer) -> None:
        """Give the worker a seat, or its old one back, with what it still holds."""
        pool = self._pool
        refusal = refuse_hello(message.version, message.mesh, pool)
        old = pool.roster.seats.get(message.worker_id)
        if refusal is None and old is not None and self._is_taken(old, message, peer):
            refusal = Refused(0, "worker.id_taken", f"{message.worker_id!r} is at work elsewhere")
        if refusal is not None:
            pool.reject(refusal.code)
            pool.send(peer, refusal)
            return
        if old is not None and old.boot_id == message.boot_id and old.dialect is Dialect.MESH:
            seat = old
            pool.roster.leave(seat)
            pool.roster.move(seat, peer)
            seat.is_live = True
            seat.unsure = {}
        else:
            if old is not None:
                self._leave_held(old, message)
                why = "its worker was started again"
                self.lose(old, why, is_counted=bool(old.is_live))
                held = set(message.held_ids)
                unsure = {i: n for i, n in old.unsure.items() if i not in held}
                self._handout.blame(old.worker_id, unsure, why)
            seat = Seat(message.worker_id, Dialect.MESH, peer, message.boot_id)
            if old is not None and old.boot_id:
                seat.displaced = (*old.displaced, old.boot_id)[-MAX_DISPLACED:]
        self._describe(seat, message)
        seat.has_asked, seat.asked = True, pool.now
        pool.roster.add(seat) if seat is not old else pool.roster.rejoin(seat)
        pool.roster.offer(seat, message.task_types, message.models)
        self._unblame(seat, message)
        dropped = self._take_over(seat, message)
        seat.work_seq = 0
        seat.owed.clear()  # it says again what it has not heard of
        policy = pool.policy
        pool.send(
            peer,
            Welcome(
                message.version,
                pool.epoch,
                policy.broker_id,
                policy.heartbeat_s,
                policy.lease_s,
                dropped,
            ),
            waits=True,  # what is dropped for an outcome may go when that is on disk
        )
        seat.welcomed = pool.now
        pool.roster.refresh(seat)

    def _leave_held(self, old: Seat, message: WorkerHello) -> None:
        """Take out of a seat what its successor holds the result of: that is not lost."""
        for task_id, token in zip(message.held_ids, message.held_tokens, strict=True):
            task = self._pool.ledger.tasks.get(task_id)
            if task is not None and task.token == token:
                old.outstanding.pop(task_id, None)

    def _is_taken(self, old: Seat, message: WorkerHello, peer: Peer) -> bool:
        """A live worker of that id beside this one: a clone, which needs another id.

        On one machine the newer is taken for a restart of the older, until that speaks again.
        """
        if not old.is_live or old.boot_id == message.boot_id or old.dialect is Dialect.POLLING:
            return False
        if message.boot_id in old.displaced:
            return True
        is_fresh = self._pool.now - old.last_heard < self._pool.policy.heartbeat_s * 1.5
        return is_fresh and old.peer.address != peer.address

    def _describe(self, seat: Seat, message: WorkerHello) -> None:
        seat.worker_type = message.worker_type
        seat.host = message.host
        seat.status_port = message.status_port
        seat.slots = max(1, message.slots)
        seat.window, seat.trouble = message.window, message.trouble
        self._heard(seat)

    def _unblame(self, seat: Seat, message: WorkerHello) -> None:
        """Count no loss of what the worker still holds: it was cut off and lives.

        It has held an attempt since that was handed out, so also when a later number was lost.
        """
        pool = self._pool
        back: dict[tuple[str, int], None] = {}
        for task_id, token in zip(message.held_ids, message.held_tokens, strict=True):
            task = pool.ledger.tasks.get(task_id)
            if task is None or task.history is None or not task.history.losses:
                continue
            claim = pool.mint.check(token, task_id)
            if claim is not None:
                losses = sorted(task.history.losses)
                own = [n for worker_id, n in losses if worker_id == seat.worker_id and n >= claim.n]
                back.update(((task_id, n), None) for n in own)
        if back:
            ids, ns = [task_id for task_id, _ in back], [n for _, n in back]
            pool.record(Recounted(seat.worker_id, ids, ns, is_loss=False))

    def _take_over(self, seat: Seat, message: WorkerHello) -> list[str]:
        """Adopt the held attempts that still hold; queue the others of the seat again.

        Returns:
            The held ids whose tasks are finished or unknown, for the worker to drop. It drops
            all it holds under an id, so none of which another attempt still holds.
        """
        pool, held = self._pool, set(message.held_ids)
        lost = [task for task in seat.outstanding.values() if task.id not in held]
        self._mislaid(seat, lost)
        until = pool.now + pool.policy.task_timeout_s
        dropped: list[str] = []
        kept: set[str] = set()
        ids: list[str] = []
        ns: list[int] = []
        for task_id, token in zip(message.held_ids, message.held_tokens, strict=True):
            claim = pool.mint.check(token, task_id)
            task = pool.ledger.open_task(task_id) if claim is not None else None
            if claim is None or task is None or _is_fenced_off(task, claim, token):
                dropped.append(task_id)
                continue
            kept.add(task_id)
            if _counts_already(task, claim):
                continue
            if task_id in seat.outstanding:
                task.work_seq, task.until = 0, max(task.until, until)
            elif task_id in ids:
                continue  # two attempts of one task: either may finish it
            elif task.state is not TaskState.RUNNING or task.worker_id in ("", seat.worker_id):
                ids.append(task_id)
                ns.append(claim.n)
                task.token = token
            elif not task.token and _is_current(task, claim, token):
                task.token = token  # handed out before our restart: now in another's outbox
        if ids:
            pool.record(Adopted(seat.worker_id, ids, ns))
        for task_id in ids:
            task = pool.ledger.tasks[task_id]
            task.work_seq, task.until = 0, until
            seat.outstanding[task_id] = task
        return [task_id for task_id in dropped if task_id not in kept]

    # ---------------------------------------------------------------------- living

    def heartbeat(self, seat: Seat, message: Heartbeat) -> None:
        """Renew the lease; hand-outs that the worker should hold and does not are lost."""
        self._heard(seat)
        seat.window, seat.running, seat.stuck = message.window, message.running, message.stuck
        seat.trouble = message.trouble
        if seat.outstanding:
            held = set(message.held_ids)
            # After a whole lease even the last hand-out has arrived, or never will.
            is_quiet = self._pool.now - seat.last_handout > self._pool.policy.lease_s
            lost = [
                task
                for task in seat.outstanding.values()
                if (is_quiet or task.work_seq <= message.work_seq) and task.id not in held
            ]
            self._mislaid(seat, lost)
        if seat.types != set(message.task_types) or seat.models != set(message.models):
            self._pool.roster.offer(seat, message.task_types, message.models)
        self._say_received(seat, [])
        self._pool.tell(seat, Beat(self._pool.epoch))
        self._pool.roster.refresh(seat)

    def results(self, seat: Seat, message: Results) -> None:
        """Record what the worker has finished; acknowledged once it is on disk."""
        pool = self._pool
        self._heard(seat)
        seat.window = message.window
        tasks, tokens, kinds = pool.ledger.tasks, message.tokens, message.kinds
        ids, payloads = message.ids, message.payloads
        ns: list[int] = []
        others: list[int] = []
        for index, task_id in enumerate(ids):
            task = tasks.get(task_id)
            if task is None or task.token != tokens[index] or kinds[index] != SUCCEEDED:
                others.append(index)
                continue
            task.token = b""  # a second copy in the same message must not count
            ns.append(task.n)
        if others:  # seldom: else the message's own columns will do
            good = sorted(set(range(len(ids))).difference(others))
            ids, payloads = [ids[index] for index in good], [payloads[index] for index in good]
        if ids:
            self._endings.complete(seat.worker_id, ids, ns, payloads)
            seat.failures_in_a_row = 0
        for index in others:
            self._unusual_result(seat, message, index)
        if not seat.results:
            self._reporting.append((seat, seat.work_seq))
        seat.results.append(message.seq)
        pool.roster.refresh(seat)

    def acknowledge(self) -> None:
        """Acknowledge the results of this wake-up, after what it has handed out.

        A worker that holds one task at a time and was just given its next will soon be
        given another: the acknowledgement goes with that one, or with its next `Beat`. Where
        tasks come one by one the next one is a moment away: it is waited for, `OWED_S`.
        """
        reporting, self._reporting = self._reporting, []
        for seat, work_seq in reporting:
            results, seat.results = seat.results, []
            if seat.window == 1 and seat.is_live and seat.work_seq != work_seq:
                seat.owed += results
            elif len(reporting) == len(results) == 1 and seat.is_live and not seat.outstanding:
                seat.owed += results
                self._handout.after(OWED_S, self._say_owed, seat)
            else:
                self._say_received(seat, results)

    def _say_owed(self, seat: Seat) -> None:
        if seat.owed and seat.is_live:
            self._say_received(seat, [])

    def _say_received(self, seat: Seat, results: list[int]) -> None:
        owed, seat.owed = seat.owed, []
        for seq in (*owed, *results):
            self._pool.send(seat.peer, Received(seq), waits=True)

    def _unusual_result(self, seat: Seat, message: Results, index: int) -> None:
        """A failure, a repeat, or a late result of an earlier attempt."""
        pool = self._pool
        task_id, token = message.ids[index], message.tokens[index]
        kind, payload = message.kinds[index], message.payloads[index]
        claim = pool.mint.check(token, task_id)
        if claim is None:
            pool.reject("token.invalid")
            return
        found = pool.ledger.find(task_id)
        if found is None or pool.ledger.state_of(task_id) is None:
            pool.duplicates += 1
            seat.outstanding.pop(task_id, None)
            return
        task = pool.ledger.tasks.get(task_id)
        if task is not None and task.token == token and task.state is TaskState.RUNNING:
            is_final = kind == REFUSED
            if not is_final:  # what it refuses is the task's fault, not its own
                seat.failures_in_a_row += 1
            self._handout.attempt_failed(seat.worker_id, task, claim.n, payload, is_final=is_final)
        elif kind == SUCCEEDED and not found[0].spec.is_fenced:
            self._endings.complete(seat.worker_id, [task_id], [claim.n], [payload])
        else:
            pool.reject("result.stale")

    def _mislaid(self, seat: Seat, lost: list[Task]) -> None:
        """The worker should hold these and does not: the hand-out got lost, or they did there."""
        if lost:
            self._returns.take(
                seat.worker_id, lost, f"worker {seat.worker_id!r} did not get or keep it", MISLAID
            )

    def release(self, seat: Seat, message: Release) -> None:
        """Queue again what the worker gives back; see `core.returns` for what it costs."""
        self._heard(seat)
        seat.window = message.window
        given = [
            task
            for task_id, token in zip(message.ids, message.tokens, strict=True)
            if (task := seat.outstanding.get(task_id)) is not None and task.token == token
        ]
        if given:
            self._given_back(seat, given, message.reason)
        self._say_received(seat, [])
        self._pool.roster.refresh(seat)

    def _given_back(self, seat: Seat, given: list[Task], reason: str) -> None:
        if reason:
            why = f"worker {seat.worker_id!r} could not run it: {reason}"
            self._returns.take(seat.worker_id, given, why, UNAVAILABLE)
        elif seat.recalled:  # we asked for it
            seat.recalled = max(0, seat.recalled - len(given))
            self._handout.requeue(seat.worker_id, given, "called back for another worker")
        else:
            why = f"worker {seat.worker_id!r} gave it back unstarted"
            kind = UNSTARTED if seat.window else LEAVING
            self._returns.take(seat.worker_id, given, why, kind)

    def chunks(self, seat: Seat, message: Chunks) -> None:
        """Pass partial output on."""
        self._heard(seat)
        self._streaming.take(message)

    # --------------------------------------------------------------------- leaving

    def goodbye(self, seat: Seat) -> None:
        """A drained worker leaves; what it may still hold waits again, uncounted."""
        held = list(seat.outstanding.values())
        self._returns.take(seat.worker_id, held, f"its worker {seat.worker_id!r} left", LEAVING)
        self._pool.roster.leave(seat)

    def lose(self, seat: Seat, why: str, *, is_counted: bool) -> None:
        """Take all from a seat and mark it offline.

        A loss counts only for the attempts that can have been running: the oldest, one
        per slot. Those behind them were waiting and are not to blame.
        """
        held = list(seat.outstanding.values())
        blamed = held[: seat.slots] if is_counted else []
        if blamed:
            self._handout.requeue(seat.worker_id, blamed, why, is_counted=True, is_loss=True)
        rest = held[len(blamed) :]
        if rest:
            self._handout.requeue(seat.worker_id, rest, why)
        self._pool.roster.leave(seat)

    def sweep(self, seat: Seat) -> None:
        """Look at one mesh seat: lease, overdue attempts, prefetched ones nobody starts."""
        pool = self._pool
        if pool.now - seat.last_heard > pool.policy.lease_s:
            blamed = list(seat.outstanding.values())[: seat.slots]
            if self._is_cut_off(seat) and all(map(_is_spared, blamed)):
                seat.unsure = {task.id: task.n for task in blamed}
                self.lose(seat, "nobody was heard", is_counted=False)
            else:
                self.lose(seat, "worker lost", is_counted=True)
            return
        self._handout.take_overdue(seat)
        seat.note_asking(pool.now)
        excess = len(seat.outstanding) - seat.slots
        if excess > 0 and self._somebody_idles(seat):
            seat.recalled = excess
            pool.tell(seat, Recall(excess))
        else:
            seat.recalled = 0

    def _is_cut_off(self, seat: Seat) -> bool:
        """Nobody beyond this machine was heard after it: our own network may be what is gone.

        A worker that comes back and had died is blamed then. What is on this machine is no
        witness, and no such cut makes it silent.
        """
        pool = self._pool
        if is_loopback(seat.peer.address):
            return False
        if self._last_word[0] != pool.now:  # once for all that fall silent at once
            mesh = [each for each in pool.roster.seats.values() if each.dialect is Dialect.MESH]
            heard = [(each.peer, each.last_heard) for each in mesh]
            heard += [(each.peer, each.last_heard) for each in pool.clients.values()]
            outside = [at for peer, at in heard if not is_loopback(peer.address)]
            self._last_word = (pool.now, max(outside))
        return self._last_word[1] <= seat.last_heard + CUT_HEARTBEATS * pool.policy.heartbeat_s

    def _somebody_idles(self, seat: Seat) -> bool:
        """Another free worker with nothing to do, while this one is at the same tasks."""
        newest = next(reversed(seat.outstanding.values()))
        if newest.until - self._pool.now > self._handout.full_time_s - RECALL_AFTER_S:
            return False  # handed out just now
        line = self._pool.roster.free.get(newest.batch.spec.type, {})
        return any(other is not seat and not other.outstanding for other in line.values())

    def _heard(self, seat: Seat) -> None:
        seat.last_heard, seat.last_heard_at = self._pool.now, self._pool.at


def _is_spared(task: Task) -> bool:
    """One more time a silence with this task is taken for a cut: it may be what kills workers."""
    history = task.remember()
    history.cuts += 1
    return history.cuts <= MAX_CUTS


def _counts_already(task: Task, claim: Claim) -> bool:
    """The failure of this attempt was told before, whoever has it in an outbox by now."""
    told = () if task.history is None else task.history.failures
    return any(n == claim.n and worker_tag(name) == claim.worker_tag for name, n in told)


def _is_fenced_off(task: Task, claim: Claim, token: bytes) -> bool:
    """An attempt of a fenced task that ended here, or after which another was handed out."""
    if not task.batch.spec.is_fenced or claim.n > task.n:  # larger: its hand-out was not stored
        return False
    return not _is_current(task, claim, token)


def _is_current(task: Task, claim: Claim, token: bytes) -> bool:
    """The attempt that runs; after a restart its token is not known, but what it says is."""
    if task.state is not TaskState.RUNNING or task.token:
        return task.token == token
    return (claim.n, claim.worker_tag) == (task.n, worker_tag(task.worker_id))


def refuse_hello(version: int, mesh: str, pool: Pool) -> Refused | None:
    """Return why a HELLO is refused, or None."""
    if version not in VERSIONS:
        spoken = ", ".join(map(str, VERSIONS))
        return Refused(0, "protocol.version", f"version {version}: spoken here are {spoken}")
    if mesh != pool.policy.mesh:
        return Refused(0, "access.forbidden", f"this is mesh {pool.policy.mesh!r}, not {mesh!r}")
    return None
