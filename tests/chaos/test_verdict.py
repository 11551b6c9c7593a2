"""The judge of the fault runner sees what is lost, doubled, wrong and stuck."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from d8mesh.core.task import Completed, Fact, Spec, Submitted
from d8mesh.edge.journal.writer import Journal
from tests.chaos.diary import Diary, digest, fingerprint
from tests.chaos.evidence import Evidence, Happening
from tests.chaos.handlers import TASK_TYPE
from tests.chaos.verdict import crashes_in, judge, wrong_in

SESSION = "0" * 16


def result_of(text: str, nonce: str = "n") -> dict[str, Any]:
    return {"success": True, "output": {"text": text, "sha": digest(text), "nonce": nonce}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of three tasks that went well, with one execution each."""
    (tmp_path / "log").mkdir()
    client = Diary(tmp_path / "log" / "client-0.jsonl")
    ids = [f"{SESSION}-{n}" for n in range(3)]
    client.note("acked", ids=ids, base="b")
    runs = Diary(tmp_path / "log" / "runs-77.jsonl")
    for n, task_id in enumerate(ids):
        runs.note("start", id=task_id, n=1)
        runs.note("end", id=task_id, n=1)
        sum_ = fingerprint(result_of(f"b-{n}"))
        client.note("got", id=task_id, state="completed", sum=sum_)
    client.close()
    runs.close()
    return tmp_path


def write(folder: Path, *, results: dict[int, dict[str, Any]], submitted: int = 3) -> None:
    encode = msgspec.msgpack.encode
    journal = Journal(folder / "orchestrator" / "orchestrator" / "journal.db")
    journal.restore()
    facts: list[Fact] = [Submitted(SESSION, 0, Spec(TASK_TYPE, 5, 3), [b"\x80"] * submitted, 1.0)]
    for n, result in results.items():
        facts.append(Completed("w", [f"{SESSION}-{n}"], [1], [encode(result)], 2.0))
    journal.append(facts)
    journal.close()


def verdict(folder: Path, happened: list[Happening] | None = None) -> dict[str, object]:
    return judge(folder, happened or [], is_drained=True)


def counts(folder: Path) -> tuple[object, ...]:
    table = verdict(folder)
    return tuple(table[name] for name in ("lost", "dup_results", "wrong", "stuck"))


def test_a_good_run_is_good(folder: Path) -> None:
    write(folder, results={n: result_of(f"b-{n}") for n in range(3)})
    assert counts(folder) == (0, 0, 0, 0)
    assert verdict(folder)["executions"] == 3


def test_an_acknowledged_task_that_the_journal_does_not_know_is_lost(folder: Path) -> None:
    write(folder, results={n: result_of(f"b-{n}") for n in range(2)}, submitted=2)
    assert counts(folder)[0] == 1


def test_a_task_without_an_outcome_is_stuck(folder: Path) -> None:
    write(folder, results={n: result_of(f"b-{n}") for n in range(2)})
    assert counts(folder) == (0, 0, 0, 1)


def test_a_result_that_belongs_to_another_task_is_wrong(folder: Path) -> None:
    write(folder, results={0: result_of("b-0"), 1: result_of("b-2"), 2: result_of("b-2")})
    assert counts(folder)[2] == 1


@pytest.mark.parametrize(
    ("code", "count", "wrong"),
    [("task.poison", 3, 0), ("task.poison", 4, 4), ("echo.broken", 1, 1)],
)
def test_only_workers_that_died_excuse_a_failure_and_not_many(
    code: str, count: int, wrong: int
) -> None:
    failed = ("failed", {"success": False, "error": "why", "code": code})
    ids = [f"{SESSION}-{n}" for n in range(count)]
    evidence = Evidence(acked=dict.fromkeys(ids, ("text", 1.0)))
    assert len(wrong_in(evidence, dict.fromkeys(ids, failed))) == wrong


def test_a_child_that_ended_by_itself_is_a_crash(tmp_path: Path) -> None:
    log = tmp_path / "orchestrator.log"
    now = datetime.now(UTC)
    lines = [
        f"{(now + timedelta(seconds=second)).isoformat()} WARNING orchestrator[1] child.died "
        f"child={child} code={code} again_in_s=0"
        for second, child, code in ((0, "broker", -9), (10, "broker", 1), (60, "web", 1))
    ]
    log.write_text("\n".join(["nonsense", *lines]), "utf-8")
    full = Happening("full disk", time.monotonic() + 8.0, [1], 5.0)
    assert [each.partition(" (")[0] for each in crashes_in(log, [full])] == ["web"]
    assert len(crashes_in(log, [])) == 2


def test_an_outcome_told_that_differs_from_the_recorded_one_is_a_second_one(folder: Path) -> None:
    write(folder, results={n: result_of(f"b-{n}", "other" if n == 1 else "n") for n in range(3)})
    assert counts(folder) == (0, 1, 0, 0)


def test_a_rerun_is_timed_from_the_death_of_its_worker(folder: Path) -> None:
    write(folder, results={n: result_of(f"b-{n}") for n in range(3)})
    task_id = f"{SESSION}-1"
    (folder / "log" / "runs-78.jsonl").write_text(
        f'{{"e": "start", "at": 5.0, "id": "{task_id}"}}\n', "utf-8"
    )
    (folder / "log" / "runs-79.jsonl").write_text(
        f'{{"e": "start", "at": 9.0, "id": "{task_id}"}}\n', "utf-8"
    )
    table = verdict(folder, [Happening("kill worker", 6.0, [78])])
    assert str(table["dead_worker_to_rerun_alone_s"]).startswith("n 1, p50 3.00")
    assert table["extra_executions"] == 2
