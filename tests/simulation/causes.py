"""What may excuse that a task fails or is cancelled: what its client asked for, and real trouble.

The world notes what clients want, what handlers do, who dies and who was heard; every counted
error, every failure and every cancellation that is recorded must have its cause there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NoReturn

import msgspec

from d8mesh.core.broker.dispatcher import STANDSTILL_S
from d8mesh.core.broker.returns import MAX_RETURNS, MAX_UNSTARTED, POISON_LOSSES
from d8mesh.core.broker.state import PLACED_TIME_S, Policy
from d8mesh.core.protocol.messages import REFUSED, SUCCEEDED, Group, Message, Results, Work
from d8mesh.core.protocol.task import (
    EXCUSED,
    SUSPECT,
    UNRETURNED,
    Cancelled,
    Failed,
    Recounted,
    Requeued,
    Submitted,
)

#: Sums of Unix seconds are exact to less than a microsecond.
ROUNDING_S: Final = 0.001
_RESTARTED: Final = "its worker was started again"
_OVERDUE: Final = "timed out"
_CUT_OFF: Final = frozenset({"nobody was heard", "its connection has ended"})
_TOO_OFTEN: Final = "given back "


@dataclass(frozen=True, slots=True)
class Wish:
    """What the client that submitted a task asked for."""

    deadline_s: float | None
    max_attempts: int
    is_fenced: bool
    run_at: float | None

    @classmethod
    def of(cls, group: Group) -> Wish:
        """Return what the tasks of a group are to be."""
        return cls(group.deadline_s, group.max_attempts, group.is_fenced, group.run_at)

    def again(self) -> Wish:
        """Return what a replay is to be: neither its deadline nor its start is the old one."""
        return replace(self, deadline_s=None, run_at=None)


@dataclass(frozen=True, slots=True)
class _Held:
    """An attempt in the hands of a worker: since when, and since when by its broker's waking."""

    worker_id: str
    n: int
    since: float
    waking_since: float


@dataclass(frozen=True, slots=True)
class _Error:
    """A counted error; `boot_id` is that of the worker that was lost with attempt `n`."""

    worker_id: str
    is_loss: bool
    boot_id: str = ""
    n: int = 0


class Causes:
    """All that happened in the world from which a failure may come.

    Args:
        fail: raises a violation for a task.
    """

    def __init__(self, fail: Callable[[str, str], NoReturn]) -> None:
        self._fail = fail
        self.now = 0.0
        self.at = self._latest_at = 0.0
        #: task id -> what its client asked for, as it said it
        self.wishes: dict[str, Wish] = {}
        #: ids that a client asked to cancel
        self.unwanted: set[str] = set()
        #: tokens of attempts that may end in a failure: their handlers did, or ran for too long
        self.broken: set[bytes] = set()
        self._told: set[bytes] = set()
        #: (task id, worker id, result) of failed attempts that are not counted yet
        self._failed: Counter[tuple[str, str, bytes]] = Counter()
        self._refused: set[tuple[str, str, bytes]] = set()
        self._policies: dict[str, Policy] = {}
        #: when a task's deadline passes (by its broker's clock, and as Unix time)
        self._due: dict[str, tuple[float, float]] = {}
        self._held: dict[str, _Held] = {}
        #: what the next work is told to run at services
        self.placed: set[str] = set()
        self._errors: dict[str, list[_Error]] = {}
        #: task id -> the workers that had it when nobody was heard, and may have died
        self._unsure: dict[str, set[str]] = {}
        #: task id -> how often it was given back since it last failed, and so that it counts
        self._returns: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._deaths: dict[str, list[float]] = {}
        #: (broker, worker id) -> when it was last heard, and its boot id
        self._heard: dict[tuple[str, str], float] = {}
        self._boots: dict[tuple[str, str], str] = {}
        #: broker -> its last wake-up, since when it is awake, and how long it stood still in all
        self._ticked: dict[str, float] = {}
        self._awake_since: dict[str, float] = {}
        self._still_s: defaultdict[str, float] = defaultdict(float)

    def pass_time(self, now: float, at: float) -> None:
        """Set the clocks of the world."""
        self.now, self.at = now, at
        self._latest_at = max(self._latest_at, at)

    # ------------------------------------------------------------ what the world notes

    def failed(self, task_id: str, worker_id: str, result: bytes) -> None:
        """An attempt has failed at this worker."""
        self._failed[task_id, _node(worker_id), result] += 1

    def says(self, worker_id: str, message: Message) -> None:
        """A mesh worker says this: of results, a failure must be one, and counts once.

        An assignment that comes twice is run twice, and may end in either way.
        """
        if not isinstance(message, Results):
            return
        for task_id, token, kind, result in zip(
            message.ids, message.tokens, message.kinds, message.payloads, strict=True
        ):
            if kind == SUCCEEDED:
                continue
            if token not in self.broken:
                self._fail(task_id, f"{worker_id} reports a failure that no handler made")
            if kind == REFUSED:
                self._refused.add((task_id, _node(worker_id), result))
            if token not in self._told:
                self._told.add(token)
                self.failed(task_id, worker_id, result)

    def died(self, node: str) -> None:
        """A worker's process has ended."""
        self._deaths.setdefault(node, []).append(self.now)

    def heard(self, broker: str, worker_id: str) -> None:
        """A broker read a word of a worker that has a worker."""
        self._heard[broker, worker_id] = self.now

    def joined(self, broker: str, worker_id: str, boot_id: str, held: dict[str, int]) -> None:
        """A worker said HELLO; an attempt that it holds since before is not lost after all.

        Args:
            held: task id -> which attempt of it.
        """
        if self._boots.get((broker, worker_id)) == boot_id:
            for task_id, n in held.items():
                self._errors[task_id] = [
                    error
                    for error in self._errors.get(task_id, [])
                    if (error.worker_id, error.boot_id, error.n) != (worker_id, boot_id, n)
                ]
        self._boots[broker, worker_id] = boot_id

    def ticked(self, broker: str) -> None:
        """A broker wakes up; what passed while it stood still is nobody's fault."""
        gap_s = self.now - self._ticked.get(broker, self.now)
        if gap_s > STANDSTILL_S:
            self._awake_since[broker] = self.now
            self._still_s[broker] += gap_s
        self._ticked[broker] = self.now

    def restored(self, policy: Policy, own: list[str], at: float) -> None:
        """A broker has started: deadlines go by the wall clock, attempts have their time again."""
        broker = policy.broker_id
        self._policies[broker] = policy
        self._ticked[broker] = self._awake_since[broker] = self.now
        for task_id in own:
            if task_id in self._due:
                due_at = self._due[task_id][1]
                self._due[task_id] = (self.now + due_at - at, due_at)
            if task_id in self._held:
                held = self._held[task_id]
                self.handed_out(broker, task_id, held.worker_id, held.n)

    # ------------------------------------------------------------- what is on the disk

    def accepted(self, broker: str, task_id: str, fact: Submitted) -> None:
        """A task was accepted: as what its client wanted."""
        wish, spec = self.wishes[task_id], fact.spec
        due_at = None if wish.deadline_s is None else fact.at + wish.deadline_s
        if due_at is not None and wish.deadline_s is not None:
            self._due[task_id] = (self.now + wish.deadline_s, due_at)
        most = wish.max_attempts or self._policies[broker].max_attempts
        if (
            (spec.deadline_at is None) != (due_at is None)
            or abs((spec.deadline_at or 0.0) - (due_at or 0.0)) > ROUNDING_S
            or (spec.max_attempts, spec.is_fenced) != (most, wish.is_fenced)
        ):
            self._fail(task_id, f"was accepted as {spec} and is to be {wish}")

    def handed_out(self, broker: str, task_id: str, worker_id: str, n: int) -> None:
        """A worker has an attempt from now on."""
        run_at = self.wishes[task_id].run_at
        if run_at is not None and self._latest_at < run_at - ROUNDING_S:
            self._fail(task_id, f"is to run at {run_at} and was handed out at {self.at}")
        self._held[task_id] = _Held(worker_id, n, self.now, self.now - self._still_s[broker])

    def requeued(self, broker: str, fact: Requeued) -> None:
        """Attempts have ended without an outcome."""
        for task_id in fact.ids:
            if fact.returned not in (UNRETURNED, EXCUSED):
                self._returns[task_id][0] += 1
                self._returns[task_id][1] += fact.returned == SUSPECT
            if fact.is_counted:
                self._count(broker, task_id, fact.worker_id, fact.why, is_loss=fact.is_loss)
            elif fact.why in _CUT_OFF:
                self._check_lost(broker, task_id, fact.worker_id, fact.why)
                self._unsure.setdefault(task_id, set()).add(fact.worker_id)
            self._held.pop(task_id, None)

    def recounted(self, fact: Recounted) -> None:
        """Attempts were lost after all; that others were not, `joined` knows by itself."""
        for task_id in fact.ids if fact.is_loss else ():
            self._count_late(task_id, fact.worker_id)

    def ended(self, broker: str, task_id: str, payload: bytes, fact: Cancelled | Failed) -> None:
        """A task has failed or was cancelled: somebody must have asked for it, or tried enough."""
        if isinstance(fact, Cancelled):
            if task_id not in self.unwanted:
                self._fail(task_id, "was cancelled and nobody asked for that")
            return
        code = msgspec.msgpack.decode(payload).get("code")
        if code is None:
            self._reported(broker, task_id, payload, fact)
            return
        if code == "task.deadline":
            due = self._due.get(task_id)
            if due is None or self.now < due[0] - ROUNDING_S:
                self._fail(task_id, f"failed by its deadline, which is {due}")
            return
        if code not in ("task.attempts", "task.poison"):
            self._fail(task_id, f"failed by itself as {code}")
        held = self._held.get(task_id)
        if held is not None:
            blamed = held.worker_id
            is_loss = fact.why != _OVERDUE and not fact.why.startswith(_TOO_OFTEN)
            self._count(broker, task_id, blamed, fact.why, is_loss=is_loss)
        else:
            blamed = fact.worker_id
            self._count_late(task_id, blamed)
        if fact.worker_id != blamed:
            self._fail(task_id, f"names {fact.worker_id!r} as its last worker, not {blamed!r}")
        if code == "task.attempts":
            self._check_used_up(broker, task_id)
            return
        lost = {error.worker_id for error in self._errors[task_id] if error.is_loss}
        if len(lost) < POISON_LOSSES:
            self._fail(task_id, f"is called poison after {self._errors[task_id]}")

    def _reported(self, broker: str, task_id: str, payload: bytes, fact: Failed) -> None:
        """A worker's failure is the last: its handler said so, or all attempts are used up."""
        is_final = (task_id, _node(fact.worker_id), payload) in self._refused
        self._count_failure(task_id, fact.worker_id, payload)
        if not is_final:
            self._check_used_up(broker, task_id)

    def _check_used_up(self, broker: str, task_id: str) -> None:
        most = self.wishes[task_id].max_attempts or self._policies[broker].max_attempts
        errors = self._errors.get(task_id, [])
        if len(errors) < most:
            self._fail(task_id, f"failed after {len(errors)} errors of {most}: {errors}")

    # --------------------------------------------------------------- counted errors

    def _count(self, broker: str, task_id: str, worker_id: str, why: str, *, is_loss: bool) -> None:
        if why == _OVERDUE:
            self._check_overdue(broker, task_id, worker_id)
        elif is_loss:
            self._check_lost(broker, task_id, worker_id, why)
        elif why.startswith(_TOO_OFTEN):
            self._check_returns(task_id)
        else:
            self._count_failure(task_id, worker_id, self._result_of(task_id, worker_id, why))
            return
        # With the HELLO of a new start goes what an earlier one held: that is lost for good.
        if not is_loss:
            self._returns.pop(task_id, None)
        held = self._held.get(task_id)
        n = 0 if held is None else held.n
        boot_id = "" if why == _RESTARTED else self._boots.get((broker, worker_id), "")
        self._errors.setdefault(task_id, []).append(_Error(worker_id, is_loss, boot_id, n))

    def _result_of(self, task_id: str, worker_id: str, why: str) -> bytes:
        """Return the result of an attempt that failed so at this worker; one not counted first."""
        found = [
            (-count, result)
            for (task, node, result), count in self._failed.items()
            if (task, node) == (task_id, _node(worker_id))
            and msgspec.msgpack.decode(result)["error"] == why
        ]
        if not found:
            self._fail(task_id, f"a failure of {worker_id} is counted and there was none")
        return min(found)[1]

    def _count_late(self, task_id: str, worker_id: str) -> None:
        """A worker that was not heard has come back as a new one: it had died with its tasks."""
        was_unsure = worker_id in self._unsure.get(task_id, ())
        if not was_unsure or not self._deaths.get(_node(worker_id)):
            self._fail(task_id, f"is said to be lost with {worker_id!r} after all")
        self._errors.setdefault(task_id, []).append(_Error(worker_id, True))

    def _count_failure(self, task_id: str, worker_id: str, payload: bytes) -> None:
        failure = (task_id, _node(worker_id), payload)
        if not self._failed[failure]:
            # The report of a polling worker names no attempt: told again, it is of the next.
            if not (_is_polling(worker_id) and failure in self._failed):
                self._fail(task_id, f"a failure of {worker_id} is counted and there was none left")
            self._failed[failure] += 1
        self._failed[failure] -= 1
        self._returns.pop(task_id, None)
        self._errors.setdefault(task_id, []).append(_Error(worker_id, False))

    def _check_returns(self, task_id: str) -> None:
        """A task that is given back for good must have been given back often enough."""
        returns, suspect = self._returns[task_id]
        if suspect + 1 < MAX_RETURNS and returns + 1 < MAX_UNSTARTED:
            self._fail(task_id, f"was given back {returns} times, {suspect} of which count")

    def _check_overdue(self, broker: str, task_id: str, worker_id: str) -> None:
        if not self._has_had_its_time(broker, task_id):
            held = self._held.get(task_id)
            self._fail(task_id, f"is said to have timed out at {worker_id}: {held}")

    def _has_had_its_time(self, broker: str, task_id: str) -> bool:
        """Tell whether its worker had a task for the whole of its time while the broker woke."""
        held = self._held.get(task_id)
        if held is None:
            return False
        full_s = self._policies[broker].task_timeout_s
        if task_id in self._due:
            full_s = min(full_s, self._due[task_id][0] - held.since)
        return self.now - self._still_s[broker] - held.waking_since >= full_s - ROUNDING_S

    def _check_lost(self, broker: str, task_id: str, worker_id: str, why: str) -> None:
        held, policy, node = self._held.get(task_id), self._policies[broker], _node(worker_id)
        if held is None or held.worker_id != worker_id:
            self._fail(task_id, f"is lost with {worker_id}, which did not hold it: {held}")
        if _is_polling(node):  # a polling worker may be silent for the whole time of a task
            is_true = self._has_had_its_time(broker, task_id)
        elif why == _RESTARTED:  # perhaps said by a HELLO that is long under way
            is_true = bool(self._deaths.get(node))
        else:
            last = max(self._heard.get((broker, worker_id), 0.0), self._awake_since[broker])
            is_dead = any(at >= held.since for at in self._deaths.get(node, ()))
            is_true = is_dead or self.now - last >= policy.lease_s
        if not is_true:
            self._fail(task_id, f"{worker_id} lives and is blamed: {why}")

    # ------------------------------------------------------------------ what is said

    def given(self, broker: str, message: Work) -> None:
        """A worker is told how long it may take: the task's time, cut at its deadline."""
        for group in message.groups:
            for task_id in group.ids:
                due = self._due.get(task_id)  # unknown as long as its submit is not on disk
                is_placed = task_id in self.placed
                full_s = PLACED_TIME_S if is_placed else self._policies[broker].task_timeout_s
                if due is not None:
                    full_s = min(full_s, max(0.0, due[0] - self.now))
                    if abs(group.timeout_s - full_s) > ROUNDING_S:
                        self._fail(task_id, f"is given {group.timeout_s} s of its {full_s} s")


def _is_polling(worker_id: str) -> bool:
    return worker_id.startswith("p")


def _node(worker_id: str) -> str:
    """Return the worker's name: one that met a copy of itself has a suffix."""
    return worker_id.partition("-")[0]
