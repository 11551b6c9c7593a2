"""The scenes of `bench llm`: what they compare with is right, and each runs when cut short."""

from __future__ import annotations

import pytest

from bench import dispatchers, llm
from bench.dispatchers import Endpoint, question_of
from bench.findings import Findings
from bench.plan import Plan
from bench.standins import Machine, best_s, standins
from d8mesh.errors import D8Error

FULL, TINY = Plan(), Plan(rounds=1, scale=0.001)

pytestmark = pytest.mark.timeout(240)


def test_the_best_schedule_is_that_of_who_knows_everything() -> None:
    for is_warm, seconds in ((True, 17.0), (False, 21.5)):
        machines = llm.three_machines(FULL, is_warm=is_warm)
        assert best_s(machines, llm.MODEL, 300, llm.TOKENS) == pytest.approx(seconds)
    one = Machine(models=("m",), loaded=("m",), slots=1)
    assert best_s([one], "m", 3, 40) == pytest.approx(3.0)


def test_each_rule_chooses_by_its_own_measure() -> None:
    first = Endpoint("a", 0, open=2, sent=2, mean_s=0.1)
    second = Endpoint("b", 1, open=1, sent=9, mean_s=4.0)
    assert dispatchers.round_robin([first, second]) is first
    assert dispatchers.least_connections([first, second]) is second
    assert dispatchers.least_loaded([first, second]) is first


def test_the_rules_of_others_reach_the_stand_ins_and_see_a_refusal() -> None:
    machine = Machine(models=("m:1b",), loaded=("m:1b",), speed=4)
    with standins([machine, machine]) as urls:
        question = question_of("m:1b", 8)
        took_s = dispatchers.makespan_s(urls, dispatchers.round_robin, question, count=16, most=16)
        assert took_s >= 2 * machine.request_s(8)
        unknown = question_of("nobody", 8)
        with pytest.raises(D8Error, match="404"):
            dispatchers.makespan_s(urls, dispatchers.least_loaded, unknown, count=1, most=1)


@pytest.mark.slow
def test_makespans_of_all_are_measured_on_fresh_machines() -> None:
    found = Findings()
    llm.makespans(found, TINY, llm.COLD, is_warm=False)
    over = found.table(llm.OVER_BEST, "×")
    assert over.rows == [llm.OURS, *dispatchers.RULES]
    assert all(over.latest(row, llm.COLD) > 0.9 for row in over.rows)


@pytest.mark.slow
def test_talks_and_a_batch_are_measured_alone_and_beside_each_other() -> None:
    found = Findings()
    llm.mix(found, TINY)
    ratio = found.table(llm.MIXED, "×")
    assert ratio.rows == [llm.P95, llm.LOSS]
    assert found.table(llm.FIRST_TOKENS, "s").latest(llm.ALONE, "p95") > 0


@pytest.mark.slow
def test_what_the_mesh_adds_to_one_request_is_measured() -> None:
    found = Findings()
    llm.single(found, TINY)
    assert found.table(llm.SINGLE, "ms").latest(llm.THROUGH, "p50") > 0
    assert found.table(llm.CHATS, "chats/s").rows == [llm.DIRECT, llm.THROUGH]
