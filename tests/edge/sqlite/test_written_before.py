"""A journal of version 3 and an outbox of version 2 that an earlier d8mesh wrote are opened.

The files in `written` stay as they are: the journal is brought up to date at its start.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import apsw
import pytest

from d8mesh.core.broker.store import (
    BatchPayloads,
    DetailsOf,
    EndOf,
    FinishedStates,
    FinishedTask,
    OutcomesOf,
    PayloadsOf,
    PrunedTask,
    TaskDetails,
)
from d8mesh.core.protocol.task import Completed, Spec, TaskState
from d8mesh.core.worker.effects import KeptResult
from d8mesh.edge.sqlite import Journal
from d8mesh.edge.sqlite.outbox import OUTBOX_NAME, Outbox
from d8mesh.edge.sqlite.schema import SCHEMA_VERSION, fetch

WRITTEN = Path(__file__).parent / "written"
S, T = "0123456789abcdef", "vvvv456789abcdef"
IDS = [f"{S}-{n}" for n in range(12)]


def laid_out(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(gzip.decompress((WRITTEN / f"{name}.gz").read_bytes()))
    return path


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(laid_out("journal.db", tmp_path))


def test_a_journal_is_as_it_was_and_goes_on(journal: Journal) -> None:
    assert journal.copy is not None
    copy = apsw.Connection(str(journal.copy))
    for db, version in ((copy, 3), (journal._db, SCHEMA_VERSION)):
        assert fetch(db, "SELECT value FROM meta WHERE name = 'schema'") == [(version,)]
    restored = journal.restore()
    assert restored.epoch == 2
    batches = [(b.session, b.first, b.count, b.spec.type, done) for b, done in restored.batches]
    assert batches == [(S, 0, 8, "echo", [0, 1, 2, 4]), (T, 0, 2, "chat", [])]
    assert restored.batches[1][0].spec == Spec("chat", 7, 2, model="tiny", is_fenced=True)
    totals = restored.totals
    assert (totals.submitted, totals.completed, totals.failed, totals.cancelled) == (14, 6, 1, 1)
    assert (restored.kept_finished, restored.accepted) == (4, {S: [(0, 12)], T: [(0, 2)]})
    assert restored.keys == {"k": (b"digest", S, 0, 8)}
    assert restored.in_flight[f"{T}-0"] == (1, "w2")
    assert (restored.waited, restored.workers["p"].worker_type) == ({"w2": 2.5}, "groq")
    assert restored.erasures == {}
    ((task_id, (n, history)),) = restored.troubled.items()
    assert (task_id, n, history.last_error, history.pause_s) == (IDS[3], 1, "broke", 2.0)
    journal.append([Completed("w2", [f"{T}-0"], [1], [b"r"], 8.0)])
    assert journal.ask(OutcomesOf([f"{T}-0"])) == FinishedStates(b"\x01", [b"r"])
    journal.close()


def test_questions_are_answered_from_it(journal: Journal) -> None:
    states = bytes([1, 1, 2, 4, 3, 4, 4, 4, 5, 5, 5, 5])
    payloads = [b"r0", b"r1", b"f2", b"", b"c4"] + [b""] * 7
    assert journal.ask(OutcomesOf(IDS)) == FinishedStates(states, payloads)
    assert journal.ask(PayloadsOf(T, 0)) == BatchPayloads([b"q0", b"q1"])
    assert journal.ask(EndOf(IDS[9])) == PrunedTask(7.0)
    failed, details = journal.ask(EndOf(IDS[2])), journal.ask(DetailsOf(IDS[3]))
    assert isinstance(failed, FinishedTask)
    assert (failed.state, failed.worker_id, failed.why) == (TaskState.FAILED, "w1", "bad")
    assert isinstance(details, TaskDetails)
    assert (details.payload, details.past[0].traceback) == (b"p3", "Traceback")
    journal.close()


def test_an_outbox_is_as_it_was_and_goes_on(tmp_path: Path) -> None:
    laid_out(OUTBOX_NAME, tmp_path)
    outbox = Outbox(tmp_path)
    kept = [KeptResult("orch-1", IDS[n], n.to_bytes(16, "big"), 1, b"r%d" % n) for n in range(3)]
    assert outbox.load() == kept
    outbox.forget([kept[0].token])
    assert outbox.load() == kept[1:]
    outbox.close()
    assert [path.name for path in tmp_path.glob("outbox-v*")] == []  # nothing was migrated
