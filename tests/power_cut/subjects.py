"""What is cut off: the journal and the outbox, each with a workload and a model of its state.

A workload is a list of commits. After commit k the file's state is `states[k]`; it was
acknowledged when `marks[k]` entries of the recording had been made. An image cut at entry c
must hold exactly the state after some commit that was acknowledged by then, or after one begun.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import apsw

from d8mesh.core.task import (
    Cancelled,
    Closed,
    Completed,
    Fact,
    Failed,
    HandedOut,
    HandoutsSettled,
    Pruned,
    Requeued,
    Spec,
    Submitted,
)
from d8mesh.core.worker_effects import Kept
from d8mesh.edge.journal.reader import Reader
from d8mesh.edge.journal.writer import Journal
from d8mesh.edge.outbox import OUTBOX_NAME, Outbox
from tests.power_cut.recorder import VFS_NAME, Entry, Recorder

#: Small, so that a short recording has many checkpoints.
CHECKPOINT_PAGES: Final = 30
JOURNAL_NAME: Final = "journal.db"
#: Task or token -> its outcome, or a word for having none.
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
    recording = Recording(recorder.entries)
    work = _JournalWork(random.Random(seed))

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
    state: State = {}
    for session, ranges in restored.accepted.items():
        for first, count in ranges:
            state |= {f"{session}-{n}": b"" for n in range(first, first + count)}
    reader = Reader(folder / JOURNAL_NAME)
    try:
        for task_id, code, payload in reader.query("outcomes", (list(state),)):
            if code in _OUTCOMES:
                assert isinstance(payload, bytes)
                state[str(task_id)] = _OUTCOMES[code] + payload
            else:
                del state[str(task_id)]  # pruned
    finally:
        reader.close()
    open_ids = {
        batch.task_id(index)
        for batch, finished in restored.batches
        for index in set(range(batch.count)) - set(finished)
    }
    if open_ids != {task_id for task_id, outcome in state.items() if not outcome}:
        raise AssertionError("recovery does not know the same unfinished tasks as the tables")
    done = sum(1 for outcome in state.values() if outcome)
    if done > restored.totals.completed + restored.totals.failed + restored.totals.cancelled:
        raise AssertionError("the counts know fewer outcomes than there are")
    return state


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


def _check_integrity(path: Path) -> None:
    db = apsw.Connection(str(path))
    try:
        verdict = db.execute("PRAGMA integrity_check").fetchall()
    finally:
        db.close()
    if verdict != [("ok",)]:
        raise AssertionError(f"integrity_check: {verdict[:3]}")


def _kept(dice: random.Random) -> Kept:
    payload = dice.randbytes(dice.randint(1, 2000))
    return Kept("broker", f"{'0' * 16}-{dice.randrange(10**6)}", dice.randbytes(16), 1, payload)


class _JournalWork:
    """Draws the facts of one commit after the other, and knows what they add up to."""

    def __init__(self, dice: random.Random) -> None:
        self.state: State = {}
        self._dice = dice
        self._sessions = [f"{number:016d}" for number in range(3)]
        self._next = dict.fromkeys(self._sessions, 0)
        self._batches: list[tuple[str, int, int]] = []
        self._number = 0

    def facts(self) -> list[Fact]:
        """Return some facts as one group commit has them."""
        facts: list[Fact] = []
        for _ in range(self._dice.randint(1, 3)):
            facts.append(self._submitted())
        waiting = [task_id for task_id, outcome in self.state.items() if not outcome]
        if len(waiting) > 20:
            facts += self._work(waiting)
        if self._dice.random() < 0.2:
            facts += self._tidy()
        return facts

    def _submitted(self) -> Submitted:
        dice, session = self._dice, self._dice.choice(self._sessions)
        count, first = dice.randint(1, 20), self._next[session]
        self._next[session] += count
        self._batches.append((session, first, count))
        self.state |= {f"{session}-{n}": b"" for n in range(first, first + count)}
        payloads = [dice.randbytes(dice.randint(1, 300)) for _ in range(count)]
        key = dice.randbytes(8).hex() if dice.random() < 0.2 else ""
        digest = b"d" * 32 if key else b""
        return Submitted(
            session, first, Spec("echo", 5, 3), payloads, 1.0, key, digest, count if key else 0
        )

    def _work(self, waiting: list[str]) -> list[Fact]:
        dice = self._dice
        ids = dice.sample(waiting, dice.randint(1, 20))
        ids.sort(key=lambda task_id: (task_id[:16], int(task_id[17:])))
        ones = [1] * len(ids)
        self._number += 1
        facts: list[Fact] = [HandedOut(self._number, "worker", ids, ones, 2.0)]
        dice_roll = dice.random()
        if dice_roll < 0.15:
            return [*facts, Requeued("worker", ids, ones, "lost", 3.0, True, True)]
        payloads = [dice.randbytes(dice.randint(1, 300)) for _ in ids]
        if dice_roll < 0.8:
            mark, fact = b"C", Completed("worker", ids, ones, payloads, 3.0)
        elif dice_roll < 0.9:
            mark, fact = b"F", Failed("worker", ids, ones, payloads, 3.0, "bad")  # type: ignore[assignment]
        else:
            mark, fact = b"X", Cancelled(ids, ones, payloads, 3.0)  # type: ignore[assignment]
        self.state |= {i: mark + payload for i, payload in zip(ids, payloads, strict=True)}
        return [*facts, fact]

    def _tidy(self) -> list[Fact]:
        facts: list[Fact] = [HandoutsSettled(self._number)]
        done = [batch for batch in self._batches if all(self.state[i] for i in _ids(batch))]
        if done:
            facts.append(Closed([(session, first) for session, first, _ in done]))
            facts.append(Pruned(done, 4.0))
            for batch in done:
                self._batches.remove(batch)
                for task_id in _ids(batch):
                    del self.state[task_id]
        return facts


def _ids(batch: tuple[str, int, int]) -> list[str]:
    session, first, count = batch
    return [f"{session}-{n}" for n in range(first, first + count)]
