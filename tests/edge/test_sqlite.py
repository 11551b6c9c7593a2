"""The journal as a file: refusals, damage, what is particular to SQLite.

What any store must do is shown by `tests/core/broker/test_store.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.core.broker.store import EndOf, PrunedTask
from d8mesh.core.protocol.task import (
    Closed,
    Completed,
    Fact,
    Pruned,
    Requeued,
    Spec,
    Submitted,
)
from d8mesh.edge.sqlite import Journal, Reader
from d8mesh.edge.sqlite.schema import CHUNKS, insert_sql, runs
from d8mesh.errors import (
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


def test_a_file_that_says_nothing_of_absent_workers_has_none(journal: Journal, file: Path) -> None:
    opened = again(journal, batch(0, 1))
    names = {row[0] for row in opened._db.execute("SELECT name FROM meta")}
    assert "waited" not in names
    assert opened.restore().waited == {}
    opened.close()


def test_a_backup_put_in_the_place_of_a_stopped_journal_is_what_counts(file: Path) -> None:
    """A log that a clean stop left behind would be laid over it."""
    journal = Journal(file)
    journal.restore()
    journal.append([batch(0, 5)])
    journal.close()
    backup = file.read_bytes()
    journal = Journal(file)
    journal.restore()
    for first in range(5, 300):
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


def test_questions_cannot_write_and_a_file_that_is_closed_answers_none(
    journal: Journal, file: Path
) -> None:
    reader = Reader(file)
    with pytest.raises(apsw.Error):
        reader._db.execute("DELETE FROM outcomes")
    reader.close()
    with pytest.raises(JournalError):
        reader.ask(EndOf(f"{S}-0"))


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
    told = [journal.ask(EndOf(f"{S}-{10 * n + 1}")) for n in range(3)]
    assert told == [PrunedTask(7.0), None, PrunedTask(8.0)]
    opened = again(journal)
    restored = opened.restore()
    assert restored.accepted == {S: [(0, 3), (20, 3), (30, 3)]}
    assert restored.sessions == 2
    assert (restored.totals.completed, restored.kept_finished) == (13, 3)
    opened.close()


@given(
    st.lists(st.integers(0, 12), unique=True, max_size=13),
    st.lists(st.integers(1, 2), min_size=13, max_size=13),
    st.sets(st.integers(0, 12)),
)
def test_runs_are_consecutive_of_one_attempt_and_stop_at_batches(
    rows: list[int], ns: list[int], breaks: set[int]
) -> None:
    seen: list[int] = []
    for start, end in runs(rows, ns, breaks):
        run = rows[start:end]
        assert run == list(range(run[0], run[0] + len(run)))
        assert len(set(ns[start:end])) == 1
        assert not breaks & set(run[1:])
        is_longest = end == len(rows) or (
            rows[end] != run[-1] + 1 or rows[end] in breaks or ns[end] != ns[start]
        )
        assert is_longest
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
