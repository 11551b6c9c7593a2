"""What is cut off: the journal and the outbox, each with a workload and a model of its state.

A workload is a list of commits. After commit k the file's state is `states[k]`; it was
acknowledged when `marks[k]` entries of the recording had been made. An image cut at entry c
must hold exactly the state after some commit that was acknowledged by then, or after one begun.
"""

from __future__ import annotations

import bisect
import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import apsw
from msgspec import structs

from d8mesh.core.broker.store import (
    BatchPayloads,
    FinishedStates,
    OutcomesOf,
    PayloadsOf,
    Question,
    Restored,
    StoreAnswer,
)
from d8mesh.core.protocol.messages import PRUNED_STATE
from d8mesh.core.protocol.task import (
    Assigned,
    AssignmentsSettled,
    Cancelled,
    Closed,
    Completed,
    Erased,
    ErasureSet,
    Fact,
    Failed,
    Pruned,
    Recounted,
    Requeued,
    Spec,
    Submitted,
    WorkersMissed,
)
from d8mesh.core.worker.effects import KeptResult
from d8mesh.edge.sqlite.journal import Journal
from d8mesh.edge.sqlite.outbox import OUTBOX_NAME, Outbox
from d8mesh.edge.sqlite.reader import Reader
from tests.power_cut.recorder import VFS_NAME, Entry, Recorder

#: Small, so that a short recording has many checkpoints.
CHECKPOINT_PAGES: Final = 30
JOURNAL_NAME: Final = "journal.db"
#: Task or token -> its outcome, or nothing for having none; of a journal also all else that a
#: start goes on from, under names of its own: see `_rest_of`.
State = dict[str, bytes]


@dataclass(slots=True)
class Recording:
    """What was written, and what had been promised at each point of it."""

    entries: list[Entry]
    #: states[0] is that of a file before its first commit
    states: list[State] = field(default_factory=lambda: [{}])
    #: entries made when commit k was acknowledged; 0 for the state before all
    marks: list[int] = field(default_factory=lambda: [0])

    def acknowledge(self, state: State) -> None:
        """Note that a commit came back and what the file must hold from now on."""
        self.states.append(dict(state))
        self.marks.append(len(self.entries))

    def allowed(self, cut: int) -> list[State]:
        """Return the states that an image cut after `cut` entries may hold."""
        last = bisect.bisect_right(self.marks, cut) - 1
        return self.states[last : last + 2]


def record_journal(folder: Path, *, seed: int, commits: int, synchronous: str) -> Recording:
    """Run the journal's workload under the recorder."""
    recorder = Recorder()
    work = JournalWork(random.Random(seed))
    recording = Recording(recorder.entries, [work.state])

    def opened() -> Journal:
        journal = Journal(
            folder / JOURNAL_NAME,
            synchronous=synchronous,
            vfs=VFS_NAME,
            checkpoint_pages=CHECKPOINT_PAGES,
        )
        journal.restore()
        return journal

    journal = opened()
    try:
        for number in range(commits):
            if number % 100 == 99:  # a clean stop and start: the log is folded back and deleted
                journal.close()
                journal = opened()
            journal.append(work.facts())
            recording.acknowledge(work.state)
            if number % 7 == 0 and journal.needs_wiping:
                journal.wipe()
    finally:
        journal.close()
        recorder.unregister()
    return recording


def read_journal(folder: Path) -> State:
    """Return what a journal holds: by its own recovery, its reader and SQLite's own check."""
    journal = Journal(folder / JOURNAL_NAME)
    try:
        restored = journal.restore()
    finally:
        journal.close()
    _check_integrity(folder / JOURNAL_NAME)
    reader = Reader(folder / JOURNAL_NAME)
    try:
        return state_of(restored, reader.ask)
    finally:
        reader.close()


def state_of(restored: Restored, ask: Callable[[Question], StoreAnswer]) -> State:
    """Return what a store holds: by what a start goes on from, and by its answers."""
    state: State = {}
    for session, ranges in restored.accepted.items():
        for first, count in ranges:
            state |= {f"{session}-{n}": b"" for n in range(first, first + count)}
    ids = list(state)
    ended = ask(OutcomesOf(ids))
    assert isinstance(ended, FinishedStates)
    for task_id, code, payload in zip(ids, ended.states, ended.payloads, strict=True):
        if code in _OUTCOMES:
            state[task_id] = _OUTCOMES[code] + payload
        elif code == PRUNED_STATE:
            del state[task_id]
    open_ids = _open_ids(restored)
    if open_ids != {i for i, outcome in state.items() if not outcome}:
        raise AssertionError("recovery does not know the same unfinished tasks as the tables")
    return state | _rest_of(restored, ask)


def _open_ids(restored: Restored) -> set[str]:
    return {
        batch.task_id(index)
        for batch, finished in restored.batches
        for index in set(range(batch.count)) - set(finished)
    }


def _rest_of(restored: Restored, ask: Callable[[Question], StoreAnswer]) -> State:
    """Return what belongs to unfinished tasks, the keys and the counts, each under its name.

    What is left of tasks that are finished counts for nothing: a start passes it over.
    """
    totals, open_ids = restored.totals, _open_ids(restored)
    counts = (totals.submitted, totals.completed, totals.failed, totals.cancelled)
    state = {"counts": _told(counts)}
    for key, what in restored.keys.items():
        state[f"key {key}"] = _told(what)
    for batch, _ in restored.batches:
        found = ask(PayloadsOf(batch.session, batch.first))
        assert isinstance(found, BatchPayloads)
        state[f"batch {batch.task_id(0)}"] = _digest(batch.spec, found.payloads)
    for task_id, holder in restored.in_flight.items():
        if task_id in open_ids:
            state[f"in hand {task_id}"] = _told(holder)
    for task_id, (n, history) in restored.troubled.items():
        if task_id in open_ids:
            where = list(history.failed_on.elements())
            state[f"trouble {task_id}"] = _trouble(n, history.errors, history.losses, where)
    state |= {f"waited {name}": _told(waited_s) for name, waited_s in restored.waited.items()}
    return state | {f"erase {i}": _told(due_at) for i, due_at in restored.erasures.items()}


def record_outbox(folder: Path, *, seed: int, commits: int, synchronous: str) -> Recording:
    """Run the outbox's workload under the recorder."""
    recorder = Recorder()
    recording = Recording(recorder.entries)
    dice = random.Random(seed)
    state: State = {}

    def opened() -> Outbox:
        return Outbox(
            folder, synchronous=synchronous, vfs=VFS_NAME, checkpoint_pages=CHECKPOINT_PAGES
        )

    outbox = opened()
    try:
        for number in range(commits):
            if number % 100 == 99:
                outbox.close()
                outbox = opened()
            if state and dice.random() < 0.4:
                gone = dice.sample(sorted(state), min(len(state), dice.randint(1, 30)))
                outbox.forget([bytes.fromhex(token) for token in gone])
                for token in gone:
                    del state[token]
            else:
                kept = [_kept(dice) for _ in range(dice.randint(1, 30))]
                outbox.keep(kept)
                state |= {row.token.hex(): row.payload for row in kept}
            recording.acknowledge(state)
            if number % 9 == 0 and outbox.needs_wiping:
                outbox.wipe()
    finally:
        outbox.close()
        recorder.unregister()
    return recording


def read_outbox(folder: Path) -> State:
    """Return what an outbox holds."""
    outbox = Outbox(folder)
    try:
        state = {row.token.hex(): row.payload for row in outbox.load()}
    finally:
        outbox.close()
    _check_integrity(folder / OUTBOX_NAME)
    return state


Record = Callable[..., Recording]
Read = Callable[[Path], State]
SUBJECTS: Final[dict[str, tuple[Record, Read]]] = {
    "journal": (record_journal, read_journal),
    "outbox": (record_outbox, read_outbox),
}

_OUTCOMES: Final[dict[object, bytes]] = {1: b"C", 2: b"F", 3: b"X"}


def _told(what: object) -> bytes:
    return repr(what).encode()


def _trouble(n: int, errors: int, losses: set[tuple[str, int]], failed_on: list[str]) -> bytes:
    return _told((n, errors, sorted(losses), sorted(failed_on)))


def _digest(spec: Spec, payloads: list[bytes]) -> bytes:
    return hashlib.sha256(_told((spec, payloads))).digest()


def _check_integrity(path: Path) -> None:
    db = apsw.Connection(str(path))
    try:
        verdict = db.execute("PRAGMA integrity_check").fetchall()
    finally:
        db.close()
    if verdict != [("ok",)]:
        raise AssertionError(f"integrity_check: {verdict[:3]}")


def _kept(dice: random.Random) -> KeptResult:
    payload = dice.randbytes(dice.randint(1, 2000))
    return KeptResult(
        "broker", f"{'0' * 16}-{dice.randrange(10**6)}", dice.randbytes(16), 1, payload
    )


class JournalWork:
    """Draws the facts of one commit after the other, and knows what they add up to."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._sessions = [f"{number:016d}" for number in range(3)]
        self._next = dict.fromkeys(self._sessions, 0)
        self._outcomes: State = {}
        self._batches: dict[tuple[str, int, int], bytes] = {}
        self._keys: dict[str, tuple[bytes, str, int, int]] = {}
        self._number = 0
        #: task id -> number of its assignment, attempt, worker
        self._held: dict[str, tuple[int, int, str]] = {}
        self._attempts: Counter[str] = Counter()
        self._trouble: dict[str, tuple[int, int, set[tuple[str, int]], list[str]]] = {}
        #: (task id, attempt) of those taken back -> worker, whether they count as lost
        self._doubted: dict[tuple[str, int], tuple[str, bool]] = {}
        self._counts = [0, 0, 0, 0]
        #: worker -> seconds
        self._waited: dict[str, float] = {}
        #: of tasks that came in by a door: their batch and its tasks' data
        self._of_door: dict[tuple[str, int, int], tuple[Spec, list[bytes]]] = {}
        #: task id -> when it is to be erased
        self._erasures: dict[str, float] = {}
        self._gone: set[str] = set()

    @property
    def state(self) -> State:
        """What the file must hold now."""
        state = dict(self._outcomes)
        state["counts"] = _told(tuple(self._counts))
        state |= {f"key {key}": _told(what) for key, what in self._keys.items()}
        for (session, first, _), digest in self._batches.items():
            state[f"batch {session}-{first}"] = digest
        state |= {f"in hand {i}": _told(held[1:]) for i, held in self._held.items()}
        state |= {f"trouble {i}": _trouble(*what) for i, what in self._trouble.items()}
        state |= {f"waited {name}": _told(waited_s) for name, waited_s in self._waited.items()}
        return state | {f"erase {i}": _told(due_at) for i, due_at in self._erasures.items()}

    def facts(self) -> list[Fact]:
        """Return some facts as one group commit has them."""
        facts: list[Fact] = []
        for _ in range(self._dice.randint(1, 3)):
            facts.append(self._submitted())
        waiting = [
            i for i, outcome in self._outcomes.items() if not outcome and i not in self._held
        ]
        if len(waiting) > 20:
            facts.append(self._handed_out(waiting))
        if self._held and self._dice.random() < 0.8:
            facts.append(self._came_back())
        if self._doubted and self._dice.random() < 0.3:
            facts.append(self._recounted())
        if self._dice.random() < 0.4:
            facts += self._delivered()
        if self._dice.random() < 0.2:
            facts += self._tidy()
        if self._dice.random() < 0.1:
            facts.append(self._missed())
        return facts

    def _submitted(self) -> Submitted:
        dice, session = self._dice, self._dice.choice(self._sessions)
        count, first = dice.randint(1, 20), self._next[session]
        self._next[session] += count
        spec = Spec("echo", dice.randint(1, 10), 3, is_fenced=dice.random() < 0.2)
        payloads = [b"\x80" + dice.randbytes(dice.randint(0, 300)) for _ in range(count)]
        if dice.random() < 0.5:
            spec = structs.replace(spec, source="ollama 10.0.0.9 a program")
            self._of_door[session, first, count] = (spec, payloads)
        self._batches[session, first, count] = _digest(spec, payloads)
        self._outcomes |= {f"{session}-{n}": b"" for n in range(first, first + count)}
        self._counts[0] += count
        if dice.random() < 0.8:
            return Submitted(session, first, spec, payloads, 1.0)
        key, digest = dice.randbytes(8).hex(), dice.randbytes(32)
        self._keys[key] = (digest, session, first, count)
        return Submitted(session, first, spec, payloads, 1.0, key, digest, count)

    def _handed_out(self, waiting: list[str]) -> Assigned:
        """Some of what waits goes to a worker; how it ends is told by a later commit, or this."""
        ids = _in_order(self._dice.sample(waiting, self._dice.randint(1, 20)))
        self._number += 1
        self._attempts.update(ids)
        worker = f"worker-{self._dice.randint(1, 3)}"
        ns = [self._attempts[task_id] for task_id in ids]
        for task_id, n in zip(ids, ns, strict=True):
            self._held[task_id] = (self._number, n, worker)
        # Needed: others are written with a later commit, and nothing is promised of them.
        return Assigned(self._number, worker, ids, ns, 2.0, is_needed=True)

    def _came_back(self) -> Fact:
        """One worker's hands are emptied: nearly always in outcomes."""
        dice = self._dice
        worker = dice.choice(sorted({held[2] for held in self._held.values()}))
        ids = _in_order([i for i, held in self._held.items() if held[2] == worker])
        ns = [self._held.pop(task_id)[1] for task_id in ids]
        luck = dice.random()
        if luck < 0.2:
            is_counted, is_loss = dice.choice(((True, True), (True, False), (False, False)))
            for task_id, n in zip(ids, ns, strict=True):
                self._hurt(task_id, n, worker, is_counted, is_loss)
            return Requeued(worker, ids, ns, "lost", 3.0, is_counted, is_loss)
        payloads = [dice.randbytes(dice.randint(1, 300)) for _ in ids]
        for task_id in ids:
            self._trouble.pop(task_id, None)
            self._doubted = {key: what for key, what in self._doubted.items() if key[0] != task_id}
        if luck < 0.8:
            self._end(ids, payloads, 1)
            return Completed(worker, ids, ns, payloads, 3.0)
        if luck < 0.9:
            self._end(ids, payloads, 2)
            return Failed(worker, ids, ns, payloads, 3.0, "bad")
        self._end(ids, payloads, 3)
        return Cancelled(ids, ns, payloads, 3.0)

    def _hurt(self, task_id: str, n: int, worker: str, is_counted: bool, is_loss: bool) -> None:
        _, errors, losses, failed_on = self._trouble.get(task_id, (0, 0, set(), []))
        losses = losses | {(worker, n)} if is_loss else losses
        failed_on = [*failed_on, worker] if is_counted else failed_on
        self._trouble[task_id] = (n, errors + is_counted, losses, failed_on)
        if is_loss or not is_counted:
            self._doubted[task_id, n] = (worker, is_loss)

    def _recounted(self) -> Recounted:
        """One that was taken back was lost with its worker after all, or was not."""
        task_id, attempt = self._dice.choice(list(self._doubted))
        worker, was_loss = self._doubted[task_id, attempt]
        n, errors, losses, failed_on = self._trouble[task_id]
        if was_loss:
            failed_on = list(failed_on)
            failed_on.remove(worker)
            self._trouble[task_id] = (n, errors - 1, losses - {(worker, attempt)}, failed_on)
        else:
            losses = losses | {(worker, attempt)}
            self._trouble[task_id] = (n, errors + 1, losses, [*failed_on, worker])
        self._doubted[task_id, attempt] = (worker, not was_loss)
        return Recounted(worker, [task_id], [attempt], not was_loss)

    def _delivered(self) -> list[Fact]:
        """Some tasks of doors that have ended are erased, or are to be."""
        ended = [
            task_id
            for batch in self._of_door
            for task_id in _ids(batch)
            if self._outcomes[task_id] and task_id not in self._gone
        ]
        ids = self._dice.sample(ended, min(len(ended), self._dice.randint(0, 10)))
        if ids and self._dice.random() < 0.3:
            later = [task_id for task_id in ids if task_id not in self._erasures]
            self._erasures |= dict.fromkeys(later, 9.0)
            return [ErasureSet(later, [b"rest"] * len(later), 9.0)]
        for task_id in ids:
            self._erasures.pop(task_id, None)
            self._outcomes[task_id] = self._outcomes[task_id][:1] + b"rest"
            self._gone.add(task_id)
        for (session, first, count), (spec, payloads) in self._of_door.items():
            for n in range(first, first + count):
                if f"{session}-{n}" in ids:
                    payloads[n - first] = bytes(len(payloads[n - first]))
            self._batches[session, first, count] = _digest(spec, payloads)
        return [Erased(ids, [b"rest"] * len(ids))] if ids else []

    def _missed(self) -> WorkersMissed:
        """Some workers are waited for, or none any more."""
        names = self._dice.sample(["worker-1", "worker-2", "worker-3"], self._dice.randint(0, 3))
        self._waited = {name: self._dice.uniform(0.0, 10.0) for name in names}
        return WorkersMissed(list(self._waited), list(self._waited.values()))

    def _end(self, ids: list[str], payloads: list[bytes], code: int) -> None:
        mark = _OUTCOMES[code]
        self._outcomes |= {i: mark + each for i, each in zip(ids, payloads, strict=True)}
        self._counts[code] += len(ids)

    def _tidy(self) -> list[Fact]:
        below = min((held[0] for held in self._held.values()), default=self._number + 1)
        facts: list[Fact] = [AssignmentsSettled(below)]
        done = [batch for batch in self._batches if all(self._outcomes[i] for i in _ids(batch))]
        if done:
            facts.append(Closed([(session, first) for session, first, _ in done]))
            facts.append(Pruned(done, 4.0))
            for batch in done:
                del self._batches[batch]
                self._of_door.pop(batch, None)
                for task_id in _ids(batch):
                    del self._outcomes[task_id]
                    self._erasures.pop(task_id, None)
            gone = {batch[:2] for batch in done}
            self._keys = {key: what for key, what in self._keys.items() if what[1:3] not in gone}
        return facts


def _ids(batch: tuple[str, int, int]) -> list[str]:
    session, first, count = batch
    return [f"{session}-{n}" for n in range(first, first + count)]


def _in_order(ids: list[str]) -> list[str]:
    return sorted(ids, key=lambda task_id: (task_id[:16], int(task_id[17:])))
