"""The judge of the fault runner sees what is lost, doubled, wrong and stuck."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from d8mesh.core.protocol.task import Completed, Fact, Spec, Submitted
from d8mesh.edge.sqlite.journal import Journal
from tests.chaos import recovery
from tests.chaos.diary import Diary, digest, fingerprint
from tests.chaos.evidence import Evidence, Happening
from tests.chaos.handlers import TASK_TYPE
from tests.chaos.verdict import crashes_in, doubled_in, judge, wrong_in
from tests.chaos.wishes import Wish

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


def failed_as(code: str) -> tuple[str, dict[str, Any]]:
    return ("failed", {"success": False, "error": "why", "code": code})


CANCELLED = ("cancelled", {"success": False, "error": "cancelled", "code": "task.cancelled"})
GOOD = ("completed", result_of("text"))


@pytest.mark.parametrize(
    ("wish", "outcome", "told_at", "is_wrong"),
    [
        (Wish("short", 10.0, 2.0), failed_as("task.deadline"), 12.0, False),
        (Wish("short", 10.0, 2.0), failed_as("task.deadline"), 11.9, True),
        (Wish("short", 10.0, 2.0), GOOD, 11.0, False),
        (Wish("short", 10.0, 2.0), CANCELLED, 12.0, True),
        (Wish("long", 10.0, 600.0), failed_as("task.deadline"), 300.0, True),
        (Wish(), failed_as("task.deadline"), 300.0, True),
        (Wish(), CANCELLED, 300.0, True),
        (Wish("once"), failed_as("task.attempts"), 300.0, False),
        (Wish("once"), failed_as("echo.broken"), 300.0, True),
        (Wish("later", 10.0, None, 21.0), GOOD, 30.0, True),
        (Wish("later", 10.0, None, 20.0), GOOD, 30.0, False),
    ],
)
def test_each_task_is_judged_by_what_it_asked_for(
    wish: Wish, outcome: tuple[str, dict[str, Any]], told_at: float, is_wrong: bool
) -> None:
    evidence = Evidence(acked={"one": ("text", 11.0)}, wishes={"one": wish})
    evidence.told_at["one"] = told_at
    evidence.starts["one"].append((20.0, 77))
    assert (wrong_in(evidence, {"one": outcome}, faults=1) == ["one"]) is is_wrong


def test_one_fault_does_not_end_more_tasks_with_one_attempt_than_a_worker_has_slots() -> None:
    ids = [f"{SESSION}-{n}" for n in range(5)]
    evidence = Evidence(
        acked=dict.fromkeys(ids, ("text", 1.0)), wishes=dict.fromkeys(ids, Wish("once"))
    )
    outcomes = dict.fromkeys(ids, failed_as("task.attempts"))
    assert len(wrong_in(evidence, outcomes, faults=1)) == 5
    assert wrong_in(evidence, outcomes, faults=2) == []


def test_what_was_said_of_a_cancelled_task_is_how_it_ends() -> None:
    evidence = Evidence(acked={"one": ("text", 1.0)})
    evidence.unwanted["one"].add("cancelled")
    evidence.told["one"].add(("cancelled", ""))
    assert wrong_in(evidence, {"one": CANCELLED}) == []
    assert doubled_in(evidence, {"one": CANCELLED}) == 0
    assert doubled_in(evidence, {"one": GOOD}) == 1


def test_two_tasks_under_one_key_are_one_too_many(folder: Path) -> None:
    write(folder, results={n: result_of(f"b-{n}") for n in range(3)})
    client = Diary(folder / "log" / "client-0.jsonl")
    client.note("acked", ids=[f"{SESSION}-0"], base="b", key="k")
    assert counts(folder) == (0, 0, 0, 0)
    client.note("acked", ids=[f"{SESSION}-1"], base="b", key="k")
    client.close()
    assert counts(folder) == (0, 1, 0, 0)


def test_a_replay_says_what_the_first_one_said(folder: Path) -> None:
    write(
        folder, results={n: result_of("b-0" if n == 3 else f"b-{n}") for n in range(4)}, submitted=4
    )
    client = Diary(folder / "log" / "client-0.jsonl")
    client.note("acked", ids=[f"{SESSION}-3"], base="", origin=f"{SESSION}-0")
    client.close()
    assert counts(folder) == (0, 0, 0, 0)


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


def test_what_a_later_broker_handed_out_counts_and_not_what_a_worker_still_had(
    folder: Path,
) -> None:
    write(folder, results={n: result_of(f"b-{n}") for n in range(3)})
    rows = [(5.0, 3), (6.5, 3), (7.25, 4), (8.0, 4)]
    (folder / "log" / "runs-78.jsonl").write_text(
        "".join(
            f'{{"e": "start", "at": {at}, "id": "{SESSION}-1", "epoch": {epoch}}}\n'
            for at, epoch in rows
        ),
        "utf-8",
    )
    log = folder / "orchestrator" / "logs" / "broker.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    boot = time.time() - time.monotonic()
    for at, epoch in ((4.0, 3), (7.0, 4)):
        word = datetime.fromtimestamp(boot + at, UTC).isoformat()
        with log.open("a", encoding="utf-8") as file:
            file.write(
                f"2026-01-01T00:00:00Z INFO cut o{word} INFO broker[1] broker.up epoch={epoch}\n"
            )
    table = verdict(folder, [Happening("kill broker", 6.0, [9])])
    assert str(table["orchestrator_kill_to_handout_all_s"]).startswith("n 1, p50 1.25")


def test_a_call_is_one_task_and_fails_only_with_its_workers() -> None:
    evidence = Evidence()
    evidence.calls["one"] = {f"{SESSION}-1"}
    assert doubled_in(evidence, {}) == 0
    evidence.calls["one"].add(f"{SESSION}-2")
    assert doubled_in(evidence, {}) == 1
    evidence.calls_failed["task.poison"] = 3
    assert wrong_in(evidence, {}) == []
    evidence.calls_failed["task.poison"] = 4
    assert len(wrong_in(evidence, {})) == 1
    evidence.calls_failed["echo.broken"] = 1
    assert len(wrong_in(evidence, {})) == 2


@pytest.mark.parametrize(
    ("over", "begun", "took"),
    [(200.0, 108.0, 8.0), (200.0, None, recovery.GIVEN_UP_S), (105.0, None, None)],
)
def test_a_worker_that_is_not_back_counts_if_there_was_time(
    over: float, begun: float | None, took: float | None
) -> None:
    evidence = Evidence(acked={"old": ("", 90.0), "new": ("", 101.0), "last": ("", over)})
    evidence.starts["old"].append((91.0, 77))
    if begun is not None:
        evidence.starts["new"].append((begun, 77))
    move = Happening("new address", 100.0, [1])
    found = recovery.workers_back(evidence, [move], [77], {})
    assert [seconds for _, seconds in found] == ([] if took is None else [took])
