"""Damaged journals: what is saved of them, and what is said of the rest."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from d8mesh.core.broker.store import (
    BatchPayloads,
    EndOf,
    FinishedStates,
    FinishedTask,
    OutcomesOf,
    PageOf,
    PayloadsOf,
    TaskPage,
)
from d8mesh.core.protocol.messages import FINAL_STATES
from d8mesh.core.protocol.task import (
    Assigned,
    Cancelled,
    Closed,
    Completed,
    Fact,
    Failed,
    Pruned,
    Requeued,
    Spec,
    Submitted,
    WorkersMissed,
    parse_id,
)
from d8mesh.edge.sqlite import Journal, Reader
from d8mesh.edge.sqlite.recovery.recover import Recovered, recover
from d8mesh.edge.sqlite.schema import NOTE_SUFFIX, SCHEMA_VERSION, fetch
from d8mesh.errors import JournalBrokenError, JournalError, JournalHeldError

SESSIONS = ("0123456789abcdef", "vvvv456789abcdef")
PAGE = 4096
CODES = {state: code for code, state in FINAL_STATES.items()}
ROOT = Path(__file__).parents[4]
#: Damaged files looked at: each page of a small journal is hit by some of them.
SEEDS = 24


def silent(text: str) -> None:
    del text


class World:
    """What a journal was told: task -> its data, and task -> (state, result)."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.outcomes: dict[str, tuple[int, bytes]] = {}
        self.pruned: set[str] = set()
        self.next = dict.fromkeys(SESSIONS, 0)

    def submit(self, session: str, payloads: list[bytes], **settings: object) -> Submitted:
        first = self.next[session]
        self.next[session] += len(payloads)
        self.data |= {f"{session}-{first + n}": p for n, p in enumerate(payloads)}
        key = f"key-{session}-{first}" if first % 7 == 0 else ""
        return Submitted(
            session,
            first,
            Spec("echo", 5, 3),
            payloads,
            1.5,
            key,
            b"d" * 32 if key else b"",
            len(payloads) if key else 0,
        )

    def end(self, ids: list[str], kind: str, dice: random.Random) -> Fact:
        payloads = [b"result of " + i.encode() + dice.randbytes(dice.randint(0, 200)) for i in ids]
        code = {"c": 1, "f": 2, "x": 3}[kind]
        self.outcomes |= {i: (code, p) for i, p in zip(ids, payloads, strict=True)}
        ones = [1] * len(ids)
        if kind == "c":
            return Completed("w1", ids, ones, payloads, 2.5)
        if kind == "f":
            return Failed("w2", ids, ones, payloads, 2.5, "bad luck")
        return Cancelled(ids, ones, payloads, 2.5)


def fill(path: Path, seed: int, *, commits: int = 40, is_killed: bool = False) -> World:
    """Make a journal with some of everything in it."""
    dice, world = random.Random(seed), World()
    journal = Journal(path, checkpoint_pages=120 if is_killed else 50)
    journal.restore()
    for at in range(commits):
        session = dice.choice(SESSIONS)
        size = dice.choice([10, 100, 3000])
        count = dice.randint(1, 30)
        facts: list[Fact] = [
            world.submit(session, [dice.randbytes(dice.randint(1, size)) for _ in range(count)])
        ]
        waiting = [i for i in world.data if i not in world.outcomes and i not in world.pruned]
        waiting.sort(key=parse_id)
        some = waiting[: dice.randint(1, 40)]
        facts.append(Assigned(at + 1, dice.choice(["w1", "w2"]), some, [1] * len(some), 2.0))
        cut = len(some) // 2
        if cut:
            facts.append(world.end(some[:cut], dice.choice("cccfx"), dice))
            facts.append(Requeued("w1", some[-1:], [1], "lost", 2.0, is_counted=True))
        journal.append(facts)
        if at == commits // 2:
            _prune(journal, world)
    if is_killed:
        os._exit(0)
    journal.close()
    for side in ("-wal", "-shm"):  # all of it is in the database, which is to be damaged
        path.with_name(path.name + side).unlink(missing_ok=True)
    return world


def _prune(journal: Journal, world: World) -> None:
    batches = fetch(journal._db, "SELECT first, count FROM batches ORDER BY seq")
    names = {sid: name for name, sid in journal._sids.items()}
    done = []
    for first, count in batches:
        session, n = names[first >> 40], first & (1 << 40) - 1
        ids = [f"{session}-{n + each}" for each in range(count)]
        if all(i in world.outcomes for i in ids):
            done.append((session, n, count))
    for session, n, count in done[:5]:
        for each in range(count):
            world.pruned.add(f"{session}-{n + each}")
    facts: list[Fact] = [Closed([row[:2] for row in done]), Pruned(done[:5], 3.0)]
    journal.append(facts)


def read(path: Path) -> tuple[dict[str, bytes], dict[str, tuple[int, bytes]]]:
    """Return what a start finds: data of the queued, outcomes of the finished."""
    journal = Journal(path)
    restored = journal.restore()
    reader = Reader(path)
    queued: dict[str, bytes] = {}
    for batch, finished in restored.batches:
        answer = reader.ask(PayloadsOf(batch.session, batch.first))
        assert isinstance(answer, BatchPayloads)
        for index in set(range(batch.count)) - set(finished):
            queued[batch.task_id(index)] = answer.payloads[index]
    outcomes: dict[str, tuple[int, bytes]] = {}
    cursor: str | None = ""
    while cursor is not None:
        page = reader.ask(PageOf(1000, cursor))
        assert isinstance(page, TaskPage)
        cursor = page.next_cursor
        outcomes |= {task.id: (CODES[task.state], task.payload) for task in page.finished.values()}
    totals = restored.totals
    assert restored.kept_finished == len(outcomes)
    assert totals.submitted >= len(queued) + len(outcomes)
    reader.close()
    # It goes on from there: new work is taken, by new and old sessions and workers.
    fresh = "zzzz456789abcdef".replace("z", "u")
    journal.append([Submitted(fresh, 0, Spec("echo", 5, 3), [b"x"], 1.0)])
    journal.append([Completed("a new worker", [f"{fresh}-0"], [1], [b"y"], 2.0)])
    journal.close()
    return queued, outcomes


def judge(world: World, path: Path, report: Recovered) -> int:
    """Hold the new journal against what was acknowledged; return how many tasks are unhurt."""
    queued, outcomes = read(path)
    told = {*report.lost_data, *report.lost_results, *report.lost_reasons}
    unhurt = 0
    for task_id, data in world.data.items():
        if task_id in world.pruned:
            continue
        had = world.outcomes.get(task_id)
        if task_id in queued:
            assert queued[task_id] == data, task_id
            if had is not None:
                assert report.may_run_again, task_id
            unhurt += had is None
        elif task_id in outcomes:
            if outcomes[task_id] == had:
                unhurt += 1
            elif task_id in told:
                assert outcomes[task_id][0] == 2
                assert b"could not be read" in outcomes[task_id][1]
            else:  # that it was cancelled is known from the index
                assert had is not None
                assert (outcomes[task_id][0], had[0]) == (3, 3), task_id
        else:
            assert is_told_as_unknown(report, task_id), task_id
    assert (
        not (queued.keys() | outcomes.keys()) & world.pruned or report.tables["pruned"].unreadable
    )
    if not report.renamed_sessions:
        invented = (queued.keys() | outcomes.keys()) - world.data.keys()
        assert not invented, invented
    return unhurt


def is_told_as_unknown(report: Recovered, task_id: str) -> bool:
    session, n = parse_id(task_id)
    for first, last in report.unknown_ids:
        if parse_id(first).session == session and parse_id(first).n <= n <= parse_id(last).n:
            return True
    # Behind the last one known of its session there is no upper end; names may be lost.
    tables = report.tables
    return bool(
        report.unknown_count is None or report.unknown_count > 0 or report.renamed_sessions
    ) and bool(tables["batches"].unreadable or tables["batches"].damaged or report.renamed_sessions)


def hit(path: Path, page: int, how: Callable[[bytearray], None]) -> None:
    content = bytearray(path.read_bytes())
    part = content[(page - 1) * PAGE : page * PAGE]
    how(part)
    content[(page - 1) * PAGE : page * PAGE] = part
    path.write_bytes(content)


def zero(page: bytearray) -> None:
    page[:] = bytes(len(page))


def clobber(page: bytearray) -> None:
    page[:64] = b"\xff" * 64


def noise(page: bytearray) -> None:
    page[:] = random.Random(len(page)).randbytes(len(page))


@pytest.mark.parametrize("how", [zero, clobber, noise])
@pytest.mark.parametrize("part", range(4))
def test_whatever_page_is_damaged_no_task_vanishes_unsaid(
    tmp_path: Path, how: Callable[[bytearray], None], part: int
) -> None:
    path = tmp_path / "journal.db"
    world = fill(path, seed=part)
    sound = path.read_bytes()
    pages = len(sound) // PAGE
    kept = judged = 0
    tried = range(1 + part, pages + 1, max(4, 4 * pages // SEEDS))
    for page in tried:
        path.write_bytes(sound)
        hit(path, page, how)
        report = recover(path, silent)
        if report.outcome == "sound":  # a page that nothing uses, or bytes of a text only
            continue
        judged += 1
        kept += judge(world, path, report)
        for each in tmp_path.iterdir():
            each.unlink()
    assert judged > 0.5 * len(tried)
    assert kept > 0.7 * judged * (len(world.data) - len(world.pruned))


@pytest.mark.parametrize("seed", range(6))
def test_many_damaged_pages_at_once_leave_no_task_unsaid(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "journal.db"
    world, dice = fill(path, seed=100 + seed), random.Random(seed)
    pages = path.stat().st_size // PAGE
    for page in dice.sample(range(2, pages + 1), pages // 10):
        hit(path, page, dice.choice([zero, clobber, noise]))
    report = recover(path, silent)
    assert report.outcome == "recovered"
    judge(world, path, report)


def test_a_file_without_its_first_page_still_has_its_tasks(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    world = fill(path, seed=1)
    hit(path, 1, zero)
    with pytest.raises(JournalBrokenError, match=r"start_d8.py recover --data"):
        Journal(path)
    report = recover(path, silent)
    assert judge(world, path, report) > 0.9 * (len(world.data) - len(world.pruned))


def test_a_truncated_file_keeps_what_is_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    world = fill(path, seed=2)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    report = recover(path, silent)
    assert judge(world, path, report) > 0


#: Fills a journal and dies: what was committed last is in the log only.
KILLED = """
import os, sys
from pathlib import Path
from tests.edge.sqlite.recovery.test_recover import fill
world = fill(Path(sys.argv[1]), 3, is_killed=True)
"""


def test_commits_in_the_log_are_saved_too(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=True, cwd=ROOT)
    world = fill(tmp_path / "other" / "journal.db", seed=3)
    log = path.with_name("journal.db-wal")
    assert log.stat().st_size > 20 * PAGE
    log_bytes, sound = log.read_bytes(), path.read_bytes()
    report, damaged = recover(path, silent), b""
    for page in range(len(sound) // PAGE, 1, -1):  # one that is not in the log as well
        path.write_bytes(sound)
        hit(path, page, zero)
        damaged = path.read_bytes()
        report = recover(path, silent)
        if report.outcome == "recovered":
            break
    assert log_bytes
    aside = Path(report.moved_to)
    assert (aside.read_bytes(), aside.with_name(aside.name + "-wal").read_bytes()) == (
        damaged,
        log_bytes,
    )
    assert judge(world, path, report) > 0.9 * (len(world.data) - len(world.pruned))


def test_after_a_recovery_no_worker_has_been_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    world = fill(path, seed=5)
    journal = Journal(path)
    journal.append([WorkersMissed(["w1"], [7.5])])
    journal._db.execute("UPDATE meta SET value = substr(value, 2) WHERE name = 'waited'")
    with pytest.raises(JournalBrokenError):
        journal.restore()
    journal.close()
    report = recover(path, silent)
    assert report.tables["meta"].damaged == 0
    assert judge(world, path, report) == len(world.data) - len(world.pruned)
    journal = Journal(path)
    assert journal.restore().waited == {}
    journal.close()


def test_a_sound_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    fill(path, seed=4)
    before = path.read_bytes()
    assert recover(path, silent).outcome == "sound"
    assert path.read_bytes() == before
    assert recover(tmp_path / "nothing.db", silent).outcome == "missing"


def test_a_journal_in_use_and_a_newer_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    with pytest.raises(JournalHeldError, match="in use by another orchestrator"):
        recover(path, silent)
    journal.append([])
    journal._db.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (SCHEMA_VERSION + 1,))
    journal.close()
    with pytest.raises(JournalBrokenError, match="not damaged; use"):
        recover(path, silent)


def test_an_interrupted_swap_is_refused_at_a_start_and_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    world = fill(path, seed=5)
    hit(path, 3, zero)
    real, moves = Path.replace, []

    def dying(self: Path, target: Path) -> Path:
        moves.append(self.name)
        if self.name == "journal.db.new":
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            recover(path, silent)
    assert path.with_name(path.name + NOTE_SUFFIX).exists()
    assert not path.exists()
    with pytest.raises(JournalBrokenError, match="interrupted"):
        Journal(path)
    report = recover(path, silent)
    assert report.outcome == "recovered"
    judge(world, path, report)
    assert {".db", ".json"} <= {each.suffix for each in tmp_path.glob("journal-broken-*")}


def test_the_report_says_which_tasks_are_lost_and_why(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal, world = Journal(path), World()
    journal.restore()
    big = [bytes([65 + n]) * 3000 for n in range(20)]
    journal.append([world.submit(SESSIONS[0], [b"small"]), world.submit(SESSIONS[0], big)])
    journal.close()
    path.with_name("journal.db-wal").unlink(missing_ok=True)
    content = path.read_bytes()
    hit(path, content.index(b"K" * 1400) // PAGE + 1, clobber)  # the data of task 11
    report = recover(path, silent)
    judge(world, path, report)
    assert report.lost_data == [f"{SESSIONS[0]}-{n}" for n in range(report.queued, 21)]
    assert 10 <= report.queued <= 12
    told = json.loads(Path(report.moved_to).with_suffix(".json").read_text("utf-8"))
    assert told["lost_data"] == report.lost_data
    reader = Reader(path)
    task = reader.ask(EndOf(report.lost_data[0]))
    assert isinstance(task, FinishedTask)
    assert task.why == "the task's data could not be read from the damaged journal"
    assert len(task.past) == 1
    reader.close()


def test_a_disk_without_room_leaves_the_damaged_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    fill(path, seed=6)
    hit(path, 3, zero)
    before = path.read_bytes()
    (tmp_path / "journal.db.new").mkdir()  # the new file cannot be made
    (tmp_path / "journal.db.new" / "x").touch()
    with pytest.raises(JournalError, match="Nothing of it was changed"):
        recover(path, silent)
    assert path.read_bytes() == before


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_task_of_a_door_whose_answer_is_lost_is_said_to_have_lost_it(
    tmp_path: Path, is_lost: bool
) -> None:
    path, session = tmp_path / "journal.db", SESSIONS[0]
    journal = Journal(path)
    journal.restore()
    spec = Spec("agent_action", 8, 3, source="ollama 10.0.0.9 curl")
    ids = [f"{session}-{n}" for n in range(3)]
    journal.append([Submitted(session, 0, spec, [b"\x80"] * 3, 1.0)])
    journal.append([Completed("w1", ids, [1] * 3, [b"answered"] * 3, 2.0)])
    table = "texts" if is_lost else "handouts"
    ((page,),) = fetch(journal._db, "SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,))
    journal.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4096 : page * 4096] = bytes(4096)
    path.write_bytes(content)
    report = recover(path, silent)
    assert report.outcome == "recovered"
    assert report.lost_results == (ids if is_lost else [])
    journal = Journal(path)
    journal.restore()
    told = journal.ask(OutcomesOf(ids))
    assert isinstance(told, FinishedStates)
    assert all((b"could not be read" in each) is is_lost for each in told.payloads)
    assert is_lost or told.payloads == [b"answered"] * 3
    journal.close()
