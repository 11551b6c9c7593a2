"""Who gets a placed task: by estimate, and how near that comes to the best schedule."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.core.broker import routing
from d8mesh.core.broker.routing import Ask
from d8mesh.core.broker.services import ServiceTable
from d8mesh.core.broker.standings import Obstacle
from d8mesh.core.protocol.messages import Budget, Measured
from d8mesh.core.protocol.wish import INTERACTIVE_PRIORITY, Cloud
from tests.core.llm_services import model, service
from tests.core.machines import Machine, Pool
from tests.core.service_tables import (
    NOW,
    asked,
    at,
    fill,
    obstacles,
    speedy,
    table_of,
    taken,
    wish,
)

# ------------------------------------------------------------------------------ wishes


def test_the_small_model_of_the_program_itself_is_the_last_resort() -> None:
    table = table_of(service("a", kind="embedded"), service("b"))
    assert taken(table, wish()) == "b/m"
    fill(table, "b")
    assert taken(table, wish()) is None
    assert taken(table, wish("m")) == "a/m"
    assert taken(table_of(service("a", kind="embedded")), wish()) == "a/m"


def test_what_a_task_needs_and_where_it_must_be_are_musts() -> None:
    table = table_of(
        service("a", [model(can=["completion"])]),
        service("b", [model(can=["completion", "tools"])]),
    )
    assert taken(table, wish("m", needs=frozenset({"tools"}))) == "b/m"
    for where in ("B", "machine-b", "W-b", "host-b"):
        assert taken(table, wish("m", machine=where)) == "b/m"
    assert taken(table, wish("m", machine="elsewhere")) is None


def test_a_later_model_runs_only_while_no_earlier_one_is_to_be_had() -> None:
    table = table_of(service("s", [model("a"), model("b")]))
    both = wish("a", "b", is_strict=True)
    assert taken(table, both) == "s/a"
    fill(table, "s", of="a")
    assert taken(table, both) is None  # it will be free again
    paused = Measured("s", [model("a", paused="it fails")])
    (worker,) = at(table, "s", "a").reach.values()
    table.measured(worker, paused, NOW)
    assert taken(table, both) == "s/b"
    fill(table, "s", of="b")
    assert taken(table, both) is None
    table.measured(worker, Measured("s", [model("b", paused="it fails too")]), NOW)
    choice = asked(table, both)
    assert [each.obstacle for each in choice.weighed] == [Obstacle.PAUSED] * 2
    assert [each.why for each in choice.weighed] == ["it fails", "it fails too"]


def test_a_preference_does_not_wait_for_ever_for_who_fails() -> None:
    table = table_of(service("a", [model("x", paused="it fails")]), service("b", [model("m")]))
    assert taken(table, wish("x"), now=1.0) is None
    assert taken(table, wish("x"), now=routing.PAUSED_LONG_S + 1.0) == "b/m"
    assert taken(table, wish("x", is_strict=True), now=routing.PAUSED_LONG_S + 1.0) is None
    ask = Ask(wish("x"), 5)
    assert not routing.has_room(table, ask, Cloud.NEVER, 1.0)
    assert routing.has_room(table, ask, Cloud.NEVER, routing.PAUSED_LONG_S + 1.0)


# --------------------------------------------------------------------------- the cloud


def cloudy(**given: Any) -> ServiceTable:
    return table_of(service("lan"), service("sky", [model(**given)], is_cloud=True))


def test_nothing_goes_to_the_cloud_that_may_not() -> None:
    table = cloudy(output_tokens_per_s=1000.0)
    assert taken(table, wish("m")) == "lan/m"
    fill(table, "lan")
    assert obstacles(asked(table, wish("m"))) == {
        "lan": Obstacle.FULL,
        "sky": Obstacle.CLOUD_FORBIDDEN,
    }
    assert taken(table, wish("m", cloud=Cloud.YES)) == "sky/m"
    assert taken(table, wish("m", cloud=Cloud.NEVER), cloud=Cloud.YES) is None


def test_a_preference_for_what_only_clouds_have_counts_as_none_where_it_may_not_go() -> None:
    table = table_of(service("lan"), service("sky", [model("big")], is_cloud=True))
    assert taken(table, wish("big")) == "lan/m"
    assert taken(table, wish("big", is_strict=True)) is None
    assert taken(table, wish("big", cloud=Cloud.YES)) == "sky/big"
    assert routing.has_room(table, Ask(wish("big"), 5), Cloud.NEVER, NOW)


def test_what_may_overflow_goes_to_the_cloud_when_the_lan_cannot_begin_soon() -> None:
    table = cloudy(output_tokens_per_s=1000.0)
    over = wish("m", cloud=Cloud.OVERFLOW, output_tokens=100, prompt_tokens=100)
    assert taken(table, over) == "lan/m"
    fill(table, "lan", expected_s=1.0)
    assert obstacles(asked(table, over, waiting=5))["sky"] is Obstacle.CLOUD_OVERFLOW_ONLY
    assert taken(table, over, waiting=30) == "sky/m"
    (worker,) = at(table, "lan").reach.values()
    table.measured(worker, Measured("lan", [model(paused="it fails")]), NOW)
    assert taken(table, over) == "sky/m"  # nobody is left on the LAN


def test_an_account_gets_no_more_than_it_allows() -> None:
    table = cloudy(budget=Budget(minute_requests=1, minute_tokens=5000))  # heard of at 0
    may = wish("m", cloud=Cloud.YES, machine="sky")
    assert taken(table, may) == "sky/m"
    budget = at(table, "sky").budget
    assert budget is not None
    budget.place("w-sky", 100, NOW)
    (weighed,) = asked(table, may).weighed
    assert (weighed.obstacle, weighed.until_s) == (Obstacle.BUDGET_USED, 63.0)
    huge = wish("m", cloud=Cloud.YES, machine="sky", prompt_tokens=9000)
    (weighed,) = asked(table, huge).weighed
    assert weighed.obstacle is Obstacle.DOES_NOT_FIT
    assert "11000 tokens" in weighed.why


def test_what_no_account_takes_goes_elsewhere_unless_its_model_is_a_must() -> None:
    budget = Budget(minute_requests=1, minute_tokens=5000)
    sky = service("sky", [model("big", budget=budget)], is_cloud=True)
    table = table_of(service("lan"), sky)
    huge: dict[str, Any] = {"cloud": Cloud.YES, "prompt_tokens": 9000}
    assert taken(table, wish("big", **huge)) == "lan/m"
    assert routing.why_too_large(table, Ask(wish("big", **huge), 5)) == ""
    must = Ask(wish("big", is_strict=True, **huge), 5)
    assert routing.why_too_large(table, must).startswith("model_strict: about 11000 tokens")
    assert routing.why_too_large(table, Ask(wish("big", "m", is_strict=True, **huge), 5)) == ""
    assert taken(table, wish("big", "m", is_strict=True, **huge)) == "lan/m"


# ----------------------------------------------------------------------------- how long


def test_the_one_that_is_sooner_done_gets_the_task() -> None:
    table = table_of(speedy("slow", 25.0), speedy("fast", 100.0))
    assert taken(table, wish("m")) == "fast/m"


def test_a_slower_one_gets_it_only_if_it_is_done_before_the_faster_are_through_with_the_line() -> (
    None
):
    table = table_of(speedy("slow", 25.0), speedy("fast", 100.0))  # 4 s and 1 s
    fill(table, "fast", expected_s=1.0)
    assert taken(table, wish("m"), waiting=2) is None
    assert obstacles(asked(table, wish("m"), waiting=2))["slow"] is Obstacle.HELD_BACK
    assert taken(table, wish("m"), waiting=3) == "slow/m"


def test_nobody_is_waited_for_who_is_silent_beyond_what_was_expected() -> None:
    table = table_of(speedy("slow", 25.0), speedy("fast", 100.0))
    fill(table, "fast", expected_s=1.0)
    assert taken(table, wish("m"), now=NOW + 2.9) is None
    assert taken(table, wish("m"), now=NOW + 3.1) == "slow/m"


def test_of_several_slow_ones_none_is_looked_at_in_vain() -> None:
    table = table_of(*(speedy(f"slow{n}", 25.0 - n) for n in range(3)), speedy("fast", 100.0))
    fill(table, "fast", expected_s=1.0)
    found = obstacles(asked(table, wish("m")))
    assert [found[f"slow{n}"] for n in range(3)] == [Obstacle.HELD_BACK] * 3


# ---------------------------------------------------------------------------- loading


def test_a_task_waits_for_no_load_if_it_is_sooner_done_without_and_the_next_is_warmed() -> None:
    table = table_of(speedy("hot", 100.0), speedy("cold", 100.0, is_loaded=False, load_s=8.0))
    fill(table, "hot", expected_s=1.0)
    choice = asked(table, wish("m"))
    assert (choice.taken, choice.warmed) == (None, None)
    choice = asked(table, wish("m"), waiting=20)
    assert choice.taken is None
    assert choice.warmed is not None
    assert choice.warmed.model is at(table, "cold")
    assert choice.warmed.load_s == pytest.approx(8.0)


def test_a_load_that_did_not_end_is_not_tried_again_by_itself_but_with_a_task() -> None:
    table = table_of(speedy("hot", 100.0), speedy("cold", 100.0, is_loaded=False, load_s=8.0))
    fill(table, "hot", expected_s=60.0)
    at(table, "cold").load(8.0, 0.0)
    assert taken(table, wish("m"), waiting=20) == "cold/m"
    fill(table, "cold", of="m", expected_s=9.0)
    assert obstacles(asked(table, wish("m")))["cold"] is Obstacle.FULL


def test_where_nobody_has_it_loaded_a_load_that_runs_is_joined_unless_another_is_sooner() -> None:
    table = table_of(*(speedy(n, 100.0, is_loaded=False, load_s=8.0, slots=2) for n in ("a", "b")))
    assert taken(table, wish("m")) == "a/m"
    at(table, "a").load(8.0, NOW)
    fill(table, "a", expected_s=9.0)
    assert taken(table, wish("m"), now=NOW + 0.5) is None
    assert obstacles(asked(table, wish("m"), now=NOW + 0.5))["a"] is Obstacle.LOADING
    at(table, "a").load(30.0, NOW)
    assert taken(table, wish("m"), now=NOW + 0.5) == "b/m"


def test_nothing_is_loaded_ahead_where_others_run() -> None:
    table = table_of(
        speedy("hot", 100.0),
        service("cold", [model(is_loaded=False, load_s=8.0), model("n")]),
    )
    fill(table, "hot", expected_s=1.0)
    fill(table, "cold", of="n")
    assert asked(table, wish("m"), waiting=20).warmed is None


def test_nothing_is_loaded_that_may_push_out_what_hardly_anybody_else_has() -> None:
    table = table_of(
        speedy("hot", 100.0),
        service("cold", [model(is_loaded=False, load_s=0.5), model("n")]),
        service("third", [model("n"), model("k")]),
    )
    fill(table, "hot", expected_s=60.0)
    assert asked(table, wish("m")).warmed is not None
    full = table.services["cold"]
    full.was_full, full.most_loaded = NOW - 1.0, 1
    assert asked(table, wish("m")).warmed is not None  # `n` is not in use
    at(table, "cold", "n").used = NOW - 1.0
    assert asked(table, wish("m")).warmed is not None  # and another has it too
    table.interactive["n:latest"] = NOW - 1.0
    choice = asked(table, wish("m"), waiting=20)
    assert (choice.taken, choice.warmed) == (None, None)
    full.most_loaded = 2
    assert asked(table, wish("m")).warmed is not None
    full.most_loaded, full.was_full = 1, NOW - routing.FULL_KNOWN_S - 1.0
    assert asked(table, wish("m")).warmed is not None


# ----------------------------------------------------------------------------- of equals


def test_of_equals_the_emptiest_gets_it_and_then_the_first() -> None:
    table = table_of(speedy("a", 100.0, slots=4), speedy("b", 98.0, slots=4))
    assert taken(table, wish("m")) == "a/m"
    fill(table, "a")
    assert taken(table, wish("m")) == "b/m"


def test_a_conversation_stays_where_it_was_unless_that_is_much_fuller() -> None:
    table = table_of(speedy("a", 100.0, slots=4), speedy("b", 100.0, slots=4))
    table.note_conversation("talk", at(table, "b"))
    talk = wish("m", conversation="talk")
    assert taken(table, talk) == "b/m"
    assert taken(table, wish("m", conversation="another")) == "a/m"
    fill(table, "b", 2)
    assert taken(table, talk) == "a/m"
    fill(table, "a", 1)
    assert taken(table, talk) == "b/m"


def test_a_retry_goes_where_it_has_not_failed_if_somebody_is_left() -> None:
    table = table_of(service("a"), service("b"))
    failed_at = frozenset({"a"})
    assert taken(table, wish("m"), failed_at=failed_at) == "b/m"
    fill(table, "b")
    choice = asked(table, wish("m"), failed_at=failed_at)
    assert obstacles(choice) == {"a": Obstacle.FAILED_BEFORE, "b": Obstacle.FULL}
    (worker,) = at(table, "b").reach.values()
    table.measured(worker, Measured("b", [model(paused="it fails")]), NOW)
    assert taken(table, wish("m"), failed_at=failed_at) == "a/m"


def test_a_model_paused_by_the_broker_says_for_how_long() -> None:
    table = table_of(service("a"))
    at(table, "a").own_pause_until = NOW + 5.0
    (each,) = asked(table, wish("m")).weighed
    assert (each.obstacle, each.until_s) == (Obstacle.PAUSED, 5.0)
    (worker,) = at(table, "a").reach.values()
    at(table, "a").own_pause_until, worker.is_mute = 0.0, True
    assert obstacles(asked(table, wish("m"))) == {"a": Obstacle.FULL}


def test_batch_work_leaves_slots_of_the_fastest_free_while_somebody_waits_at_screens() -> None:
    table = table_of(speedy("a", 100.0, slots=8), speedy("b", 50.0, slots=8))
    fill(table, "a", 7)
    fill(table, "b", 8)
    assert taken(table, wish("m")) == "a/m"
    table.interactive["other:latest"] = NOW - 1.0
    assert taken(table, wish("m")) == "a/m"
    table.interactive["m:latest"] = NOW - 1.0
    assert obstacles(asked(table, wish("m")))["a"] is Obstacle.RESERVED
    assert taken(table, wish("m"), priority=INTERACTIVE_PRIORITY) == "a/m"
    table.end("a-0", NOW)
    assert taken(table, wish("m")) == "a/m"  # one is left
    table.interactive["m:latest"] = NOW - routing.INTERACTIVE_S
    fill(table, "a")
    assert taken(table, wish("m")) == "a/m"


def test_few_slots_are_not_kept_free() -> None:
    table = table_of(speedy("a", 100.0, slots=4))
    fill(table, "a", 3)
    table.interactive["m:latest"] = NOW
    assert taken(table, wish("m")) == "a/m"


# ------------------------------------------------------------------------- the schedule


@pytest.mark.parametrize(("is_warm", "most_s"), [(True, 1.08 * 17.0), (False, 1.15 * 21.5)])
def test_three_machines_come_near_the_best_schedule_at_their_first_run(
    is_warm: bool, most_s: float
) -> None:
    pool = Pool(
        [
            Machine("a"),
            Machine("b", is_loaded=is_warm),
            Machine("c", speed=0.25, is_loaded=is_warm),
        ]
    )
    pool.submit(300, model="m")
    took_s = pool.run(300)
    assert took_s <= most_s, took_s
