"""The journal on a real file: commits, restarts, refusals, pruning, questions."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.core.protocol.task import (
    Assigned,
    AssignmentsSettled,
    Cancelled,
    Closed,
    Completed,
    Enrolled,
    Fact,
    Failed,
    Pruned,
    Requeued,
    Spec,
    Submitted,
    WorkersMissed,
)
from d8mesh.edge.sqlite import Journal, Reader
from d8mesh.edge.sqlite.schema import CHUNKS, Runs, insert_sql
from d8mesh.errors import (
    InvalidTaskError,
    JournalBrokenError,
    JournalError,
    JournalHeldError,
)

S = "0123456789abcdef"


def batch(first: int, count: int, session: str = S) -> Submitted:
    return Submitted(session, first, Spec("echo", 5, 3), [b"x"] * count, 1.0)


def done(*numbers: int, n: int = 1) -> Completed:
    ids = [f"{S}-{number}" for number in numbers]
    payloads = [f"r{number}".encode() for number in numbers]
    return Completed("w", ids, [n] * len(ids), payloads, 2.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(file: Path) -> Iterator[Journal]:
    made = Journal(file)
    made.restore()
    yield made
    made.close()


def again(journal: Journal, *facts: Fact) -> Journal:
    """Append, close, and open the file anew."""
    journal.append(facts)
    journal.close()
    return Journal(journal.path)


def test_the_epoch_rises_with_every_start(file: Path) -> None:
    for epoch in (1, 2, 3):
        journal = Journal(file)
        assert journal.restore().epoch == epoch
        journal.close()


def test_the_secret_and_the_id_stay(file: Path) -> None:
    first = Journal(file)
    told = (first.broker_id, first.restore().secret)
    first.close()
    second = Journal(file)
    assert (second.broker_id, second.restore().secret) == told
    second.close()


def test_unfinished_tasks_come_back_and_finished_ones_do_not(journal: Journal) -> None:
    opened = again(journal, batch(0, 5), batch(5, 2), done(1, 2), done(5, 6), Closed([(S, 5)]))
    restored = opened.restore()
    assert [(b.first, b.count, sorted(f)) for b, f in restored.batches] == [(0, 5, [1, 2])]
    assert restored.accepted == {S: [(0, 7)]}
    assert (restored.totals.submitted, restored.totals.completed) == (7, 4)
    assert restored.workers["w"].completed == 4
    opened.close()


def _goes_on(counted: list[int]) -> bool:
    counted.append(10)
    return False  # else SQLite would stop


@pytest.mark.parametrize("is_open", [True, False])
def test_a_start_takes_no_longer_the_more_is_finished(tmp_path: Path, is_open: bool) -> None:
    """Counted in SQLite's own steps, with open batches or with none."""
    steps = []
    for finished in (100, 1000):
        journal = Journal(tmp_path / f"{finished}.db")
        facts: list[Fact] = [batch(0, finished)]
        for number in range(finished):  # each a row of its own, and one of what went wrong
            facts += [done(number, n=2 - number % 2)]
            facts += [Requeued("w", [f"{S}-{number}"], [1], "lost", 1.0)]
        facts.append(Closed([(S, 0)]))
        if is_open:
            facts += [batch(10_000 + 10 * number, 10) for number in range(20)]
        journal = again(journal, *facts)
        counted: list[int] = []
        journal._db.set_progress_handler(partial(_goes_on, counted), 10)
        assert len(journal.restore().batches) == 20 * is_open
        journal.close()
        steps.append(len(counted))
    assert steps[1] < 1.5 * steps[0]


def test_who_had_what_comes_back_until_it_is_settled(journal: Journal) -> None:
    ids = [f"{S}-0", f"{S}-1", f"{S}-2"]
    facts: list[Fact] = [
        batch(0, 3),
        Assigned(1, "a", ids[:2], [1, 1], 1.0),
        Assigned(2, "b", ids[2:], [1], 1.0),
        Requeued("a", ids[:1], [1], "broke", 1.0, is_counted=True, is_loss=True),
    ]
    opened = again(journal, *facts)
    restored = opened.restore()
    assert restored.in_flight == {ids[1]: (1, "a"), ids[2]: (1, "b")}
    ((task_id, (n, history)),) = restored.troubled.items()
    assert (task_id, n) == (ids[0], 1)
    told = (history.errors, history.losses, history.failures, history.failed_on)
    assert told == (1, {("a", 1)}, set(), Counter("a"))
    assert history.last_error == "broke"
    assert restored.next_assignment == 3
    opened = again(opened, AssignmentsSettled(2))
    assert opened.restore().in_flight == {ids[2]: (1, "b")}
    opened.close()


def test_how_long_absent_workers_were_waited_for_comes_back_until_it_is_of_no_use(
    journal: Journal,
) -> None:
    opened = again(journal, WorkersMissed(["a", "b"], [2.5, 7.5]))
    assert opened.restore().waited == {"a": 2.5, "b": 7.5}
    opened = again(opened)  # a start alone forgets nothing: the brain says what it is worth
    assert opened.restore().waited == {"a": 2.5, "b": 7.5}
    opened = again(opened, WorkersMissed(["a"], [5.0]), WorkersMissed(["b"], [10.0]))
    assert opened.restore().waited == {"b": 10.0}
    opened = again(opened, WorkersMissed([], []))
    assert opened.restore().waited == {}
    opened.close()


def test_a_file_that_says_nothing_of_absent_workers_has_none(journal: Journal, file: Path) -> None:
    opened = again(journal, batch(0, 1))
    names = {row[0] for row in opened._db.execute("SELECT name FROM meta")}
    assert "waited" not in names
    assert opened.restore().waited == {}
    opened.close()


def test_the_wait_of_a_commit_that_failed_is_not_written(journal: Journal, file: Path) -> None:
    journal.append([batch(0, 1), WorkersMissed(["a"], [2.5])])
    with pytest.raises(JournalError):
        journal.append([batch(0, 1), WorkersMissed(["a"], [5.0])])
    journal.close()
    opened = Journal(file)
    assert opened.restore().waited == {"a": 2.5}
    opened.close()


def _noted(file: Path) -> list[int]:
    """Return the numbers of the hand-outs in the file."""
    with contextlib.closing(apsw.Connection(str(file))) as db:
        return [row[0] for row in db.execute("SELECT number FROM handouts ORDER BY number")]


def test_a_hand_out_is_written_when_it_has_been_due_twice_unless_its_task_is_finished_by_then(
    journal: Journal, file: Path
) -> None:
    owes = []
    journal.append([batch(0, 9), Assigned(1, "w", [f"{S}-0"], [1], 1.0)], is_due=True)
    owes.append(journal.owes)
    assert _noted(file) == []
    journal.append([done(0), Assigned(2, "w", [f"{S}-1"], [1], 1.0)], is_due=True)
    journal.append([done(4)])
    assert _noted(file) == []
    journal.append([], is_due=True)
    owes.append(journal.owes)
    assert owes == [True, False]
    assert _noted(file) == [2]
    # It cannot be told at a glance what became of several.
    journal.append([Assigned(3, "w", [f"{S}-2", f"{S}-3"], [1, 1], 1.0)])
    journal.append([done(2, 3)])
    assert _noted(file) == [2, 3]


def test_a_hand_out_of_a_commit_that_failed_is_never_written(journal: Journal, file: Path) -> None:
    new = batch(0, 1, "new0new0new0new0")
    with pytest.raises(JournalError):
        journal.append([new, Assigned(1, "w", ["new0new0new0new0-0"], [1], 1.0), new])
    journal.close()
    assert _noted(file) == []
    again = Journal(file)
    assert again.restore().in_flight == {}
    again.close()


ENDED = (
    Failed("w", [f"{S}-0"], [1], [b""], 2.0, "bad"),
    Cancelled([f"{S}-0"], [1], [b""], 2.0),
)


@pytest.mark.parametrize("end", ENDED, ids=lambda end: type(end).__name__)
def test_a_hand_out_of_a_task_that_failed_or_was_cancelled_is_not_written(
    journal: Journal, file: Path, end: Failed | Cancelled
) -> None:
    journal.append([batch(0, 1), Assigned(1, "w", end.ids, [1], 1.0)])
    journal.append([end])
    assert _noted(file) == []


def test_a_hand_out_to_a_polling_worker_is_written_at_once(journal: Journal, file: Path) -> None:
    journal.append([batch(0, 1), Assigned(1, "p", [f"{S}-0"], [1], 1.0, is_needed=True)])
    assert _noted(file) == [1]


def test_hand_outs_that_wait_are_written_when_the_journal_is_closed(
    journal: Journal, file: Path
) -> None:
    again(journal, batch(0, 1), Assigned(1, "w", [f"{S}-0"], [1], 1.0)).close()
    assert _noted(file) == [1]


def test_a_backup_put_in_the_place_of_a_stopped_journal_is_what_counts(file: Path) -> None:
    """A log that a clean stop left behind would be laid over it."""
    journal = Journal(file)
    journal.restore()
    journal.append([batch(0, 5)])
    journal.close()
    backup = file.read_bytes()
    journal = Journal(file)
    journal.restore()
    for first in range(5, 2000):
        journal.append([batch(first, 1)])
    journal.close()
    file.write_bytes(backup)
    journal = Journal(file)
    assert journal.restore().totals.submitted == 5
    journal.close()


def test_a_commit_that_fails_leaves_nothing_behind(journal: Journal, file: Path) -> None:
    journal.append([batch(0, 2)])
    journal._db.execute("PRAGMA query_only = ON")
    with pytest.raises(JournalError, match="cannot write"):
        journal.append([batch(2, 2), done(0)])
    journal.close()
    opened = Journal(file)
    restored = opened.restore()
    assert [(b.first, b.count, f) for b, f in restored.batches] == [(0, 2, [])]
    opened.close()


def test_an_outcome_cannot_be_written_twice(journal: Journal) -> None:
    journal.append([batch(0, 2), done(0)])
    with pytest.raises(JournalError):
        journal.append([done(0, n=2)])


def test_a_second_process_is_refused_and_told_who_holds_it(journal: Journal, file: Path) -> None:
    with pytest.raises(JournalHeldError, match=r"process [0-9]+"):
        Journal(file)
    journal.close()
    Journal(file).close()


def test_a_damaged_file_is_refused_and_left_alone(file: Path) -> None:
    file.write_bytes(b"no database at all" * 500)
    with pytest.raises(JournalBrokenError, match="cannot be read as a journal"):
        Journal(file)
    assert file.read_bytes().startswith(b"no database")


def test_a_file_with_damaged_pages_is_refused(journal: Journal, file: Path) -> None:
    journal.append([batch(n * 10, 10) for n in range(500)])
    journal.close()
    content = bytearray(file.read_bytes())
    for start in range(4096 * 2, len(content) - 4096, 4096):
        content[start : start + 64] = b"\xff" * 64
    file.write_bytes(content)
    with pytest.raises(JournalBrokenError):
        Journal(file)


def test_a_newer_schema_is_refused(journal: Journal, file: Path) -> None:
    journal.close()
    with apsw.Connection(str(file)) as db:
        db.execute("UPDATE meta SET value = 99 WHERE name = 'schema'")
    db.close()
    with pytest.raises(JournalBrokenError, match="schema version 99"):
        Journal(file)


def test_questions_see_what_is_committed_and_cannot_write(journal: Journal, file: Path) -> None:
    reader = Reader(file)
    assert reader.query("outcomes", ([f"{S}-0"],)) == []
    journal.append([batch(0, 3), done(0, 1)])
    wanted = [f"{S}-{n}" for n in (1, 0, 2, 9)]
    assert reader.query("outcomes", (wanted,)) == [(f"{S}-1", 1, b"r1"), (f"{S}-0", 1, b"r0")]
    assert reader.query("payloads", (S, 0)) == [([b"x"] * 3,)]
    assert reader.query("payloads", (S, 7)) == []
    assert reader.query("task", ("nonsense",)) == []
    with pytest.raises(InvalidTaskError, match="cursor"):
        reader.query("list", ("", "", 10, "x.y"))
    with pytest.raises(apsw.Error):
        reader._db.execute("DELETE FROM outcomes")
    reader.close()
    with pytest.raises(JournalError):
        reader.query("task", (f"{S}-0",))


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled", ""])
@pytest.mark.parametrize("limit", [1, 3, 7])
def test_pages_of_a_listing_hold_each_task_once(journal: Journal, state: str, limit: int) -> None:
    """Also where a page ends within a run of outcomes that were written as one."""
    ids = [[f"{S}-{10 * start + n}" for n in range(10)] for start in range(3)]
    ns, none = [1] * 10, [b""] * 10
    journal.append(
        [
            batch(0, 30),
            done(*range(10)),
            Cancelled(ids[1], ns, none, 2.0),
            Failed("w", ids[2], ns, none, 2.0, "broken"),
        ]
    )
    reader = Reader(journal.path)
    listed: list[object] = []
    cursor: object = ""
    while cursor is not None:
        (cursor, *_), *rows = reader.query("list", (state, "", limit, cursor or ""))
        listed += [row[0] for row in rows]
    reader.close()
    place = {"completed": 0, "cancelled": 1, "failed": 2}.get(state)
    assert listed == ([*ids[0], *ids[1], *ids[2]] if place is None else ids[place])


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_open_tasks_are_listed_behind_finished_batches_that_are_not_closed(
    journal: Journal, limit: int
) -> None:
    journal.append([batch(first, 1) for first in range(20)] + [batch(20, 10), batch(30, 1)])
    journal.append([done(*range(20)), done(21, 22)])
    reader = Reader(journal.path)
    listed: list[object] = []
    cursor: object = ""
    while cursor is not None:
        (cursor, *_), *rows = reader.query("list", ("open", "", limit, cursor or ""))
        assert rows or cursor is None
        listed += [row[0] for row in rows]
    reader.close()
    assert listed == [f"{S}-{n}" for n in (20, *range(23, 31))]


def test_the_oldest_finished_are_pruned_with_a_tombstone(journal: Journal, file: Path) -> None:
    reader = Reader(file)
    journal.append([batch(0, 2), batch(2, 2), done(0, 1, 2, 3), Closed([(S, 0), (S, 2)])])
    assert reader.query("prunable", (0.0, 1, 10)) == []
    assert reader.query("prunable", (0.0, 2, 10)) == [(S, 0, 2)]
    assert reader.query("prunable", (9.0, 0, 10)) == [(S, 0, 2), (S, 2, 2)]
    journal.append([Pruned([(S, 0, 2)], 7.0)])
    assert reader.query("task", (f"{S}-1",)) == reader.query("replay", (f"{S}-1",)) == [(7.0,)]
    assert reader.query("replay", (f"{S}-9",)) == []
    assert len(reader.query("task", (f"{S}-2",))[0]) == 12
    reader.close()


def test_the_ids_of_the_last_pruned_batches_stay_used_and_older_ones_are_unknown(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d8mesh.edge.sqlite.journal.MAX_TOMBSTONES", 2)
    other = Completed("w", ["f" * 16 + "-0"], [1], [b"r"], 2.0)
    journal.append([batch(0, 1, "f" * 16), other, Pruned([("f" * 16, 0, 1)], 6.0)])
    for n in range(4):
        journal.append([batch(10 * n, 3), done(*range(10 * n, 10 * n + 3)), Closed([(S, 10 * n)])])
    journal.append([Pruned([(S, 10, 3), (S, 0, 3)], 7.0)])
    journal.append([Pruned([(S, 20, 3)], 8.0)])
    reader = Reader(journal.path)
    told = [reader.query("task", (f"{S}-{10 * n + 1}",)) for n in range(3)]
    reader.close()
    assert told == [[(7.0,)], [], [(8.0,)]]
    opened = again(journal)
    restored = opened.restore()
    assert restored.accepted == {S: [(0, 3), (20, 3), (30, 3)]}
    assert restored.sessions == 2
    assert (restored.totals.completed, restored.kept_finished) == (13, 3)
    opened.close()


def test_a_batch_that_a_key_names_is_pruned_behind_the_others_of_its_submit(
    journal: Journal, file: Path
) -> None:
    reader = Reader(file)
    named = Submitted(S, 0, Spec("echo", 5, 3), [b"x"] * 2, 1.0, "k", b"d", 4)
    journal.append([named, batch(2, 1), batch(3, 1), batch(4, 1), done(0, 1, 2, 4)])
    journal.append([Closed([(S, 0), (S, 2), (S, 4)])])
    assert reader.query("prunable", (9.0, 0, 10)) == [(S, 2, 1), (S, 4, 1)]
    journal.append([Pruned([(S, 2, 1)], 7.0), done(3), Closed([(S, 3)])])
    assert reader.query("prunable", (9.0, 0, 10)) == [(S, 3, 1), (S, 4, 1)]
    journal.append([Pruned([(S, 3, 1)], 8.0)])
    assert reader.query("prunable", (9.0, 0, 1)) == [(S, 0, 2)]
    reader.close()


def test_registrations_of_polling_workers_stay(journal: Journal) -> None:
    opened = again(journal, Enrolled("p", "groq", b"\x80"))
    assert opened.restore().workers["p"].capabilities == b"\x80"
    opened.close()


def test_there_is_room_to_be_told(journal: Journal) -> None:
    assert journal.free_bytes() > 0


@given(st.lists(st.integers(0, 12), unique=True, max_size=13), st.sets(st.integers(0, 12)))
def test_runs_are_consecutive_and_stop_at_batches(rows: list[int], breaks: set[int]) -> None:
    seen: list[int] = []
    for start, end in Runs(rows, breaks).slices(len(rows)):
        run = rows[start:end]
        assert run == list(range(run[0], run[0] + len(run)))
        assert not breaks & set(run[1:])
        seen += run
    assert seen == rows


@pytest.mark.parametrize("count", [1, 2, CHUNKS[0] + 5, 3 * CHUNKS[0] + 7])
def test_what_each_of_many_workers_has_completed_is_counted(journal: Journal, count: int) -> None:
    journal.append([batch(1, 3 * count)])
    for part in (range(count), range(count, 3 * count)):  # the second has each worker twice
        ids = [f"{S}-{n + 1}" for n in part]
        journal.append(
            [Completed(f"w{n % count}", [ids[i]], [1], [b"r"], 2.0) for i, n in enumerate(part)]
        )
    opened = again(journal)
    workers = opened.restore().workers
    assert {name: record.completed for name, record in workers.items()} == {
        f"w{n}": 3 for n in range(count)
    }
    opened.close()


@pytest.mark.parametrize("count", [1, CHUNKS[0] - 1, CHUNKS[0] + 1, 3 * CHUNKS[0] + 7])
def test_any_number_of_rows_is_written(journal: Journal, count: int) -> None:
    journal.append([batch(n * 2, 1) for n in range(count)])
    assert insert_sql("batches", 9, 2).count("?") == 18
    opened = again(journal)
    assert len(opened.restore().batches) == count
    opened.close()
