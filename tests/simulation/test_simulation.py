"""Seeded histories of the real brains; a failing seed prints itself and the task's story."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from d8mesh.core.protocol.task import Fact, Submitted
from d8mesh.edge.sqlite import Journal
from d8mesh.errors import JournalError
from tests.simulation.orchestrator import Orchestrator
from tests.simulation.run import run_seeds
from tests.simulation.safety import Violation
from tests.simulation.workers import SimWorker
from tests.simulation.world import World

SEEDS = 300
AT_A_TIME = 20
#: Of these, enough for every run of the tests; the others are a long proof.
QUICK_SEEDS = 60
SHARES = [
    pytest.param(start, marks=[pytest.mark.slow] if start >= QUICK_SEEDS else [])
    for start in range(0, SEEDS, AT_A_TIME)
]


@pytest.mark.parametrize("start", SHARES)
def test_no_history_breaks_a_promise(start: int) -> None:
    _, counts = run_seeds(range(start, start + AT_A_TIME))
    assert isinstance(counts, Counter), counts
    assert counts["tasks"] > 0


#: What judges reasons takes the time of a commit for that of the decision.
REASONS = ("accepted", "handed_out", "requeued", "recounted", "ended", "restored", "given")


def commits_take_time(world: World) -> None:
    for name in REASONS:
        setattr(world.safety.causes, name, lambda *told: None)
    for orchestrator in world.orchestrators:
        orchestrator.latency_s = world.rng.choice((0.1, 0.5, 2.0))


@pytest.mark.parametrize("seed", range(10))
def test_no_history_breaks_a_promise_while_commits_are_in_flight(tmp_path: Path, seed: int) -> None:
    assert World(seed, tmp_path, plant=commits_take_time).run().tasks > 0


@pytest.mark.parametrize("seed", range(5))
def test_in_a_calm_world_every_task_runs_once(tmp_path: Path, seed: int) -> None:
    world = World(seed, tmp_path, is_calm=True)
    counts = world.run()
    assert not counts.faults
    unrun = sum(state != 1 for state, _ in world.safety.outcomes.values())  # deadlines
    assert counts.executions <= counts.tasks <= counts.executions + unrun


@pytest.mark.parametrize("seed", [3, 77])
def test_a_seed_tells_the_same_history_again(tmp_path: Path, seed: int) -> None:
    told = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        world = World(seed, tmp_path / name)
        world.run()
        told.append(world.safety.whole_story())
    assert told[0] == told[1]


def acknowledges_early(world: World) -> None:
    for orchestrator in world.orchestrators:
        orchestrator.commits_before_sending = False


def test_acknowledging_before_the_commit_is_caught(tmp_path: Path) -> None:
    with pytest.raises(Violation, match=r"seed 1: .* not on disk") as caught:
        World(1, tmp_path, plant=acknowledges_early).run()
    assert "acknowledged" in str(caught.value)


def test_a_disk_that_loses_a_commit_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Orchestrator._commit

    def loses_a_few(self: Orchestrator, facts: Sequence[Fact]) -> None:
        is_submit = any(isinstance(fact, Submitted) for fact in facts)
        if is_submit and self.world.rng.random() < 0.2:
            self.world.safety.committed(self.name, facts)
        else:
            commit(self, facts)

    monkeypatch.setattr(Orchestrator, "_commit", loses_a_few)
    with pytest.raises((Violation, KeyError, JournalError)):
        World(5, tmp_path).run()


def _run_some(folder: Path) -> None:
    for seed in range(50):
        (folder / str(seed)).mkdir()
        World(seed, folder / str(seed)).run()


def test_half_a_commit_after_a_torn_write_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Journal.append

    def one_by_one(self: Journal, facts: Sequence[Fact]) -> None:
        for fact in facts:
            append(self, [fact])

    monkeypatch.setattr(Journal, "append", one_by_one)
    monkeypatch.setattr("tests.simulation.orchestrator.AT_ONCE", 0.0)
    monkeypatch.setattr("tests.simulation.orchestrator.TORN", 1.0)
    with pytest.raises((Violation, KeyError, JournalError)):
        _run_some(tmp_path)


def test_results_mixed_up_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[bytes] = []
    right = SimWorker._result

    def wrong(self: SimWorker, payload: bytes) -> bytes:
        results.append(right(self, payload))
        return results[0]

    monkeypatch.setattr(SimWorker, "_result", wrong)
    with pytest.raises(Violation, match="has the result of another"):
        World(5, tmp_path).run()


def test_keys_are_shown_out_and_let_in_among_the_rest() -> None:
    _, counts = run_seeds(range(6))
    assert isinstance(counts, Counter), counts
    assert counts["revoke of a key"] > 0
    assert counts["approval of a key"] > 0
