"""Routing as people see it: whole pools in virtual time, the real dispatcher, no sockets."""

from __future__ import annotations

import pytest

from tests.core.simulated_pool import SimulatedPool, best_makespan

#: A request of the scenes: 20 tokens of prompt, 20 of answer at 40 a second.
REQUEST_S = 0.5 + 20 / 2000
COUNT = 300
LOAD_S = 8.0


def three_machines(pool: SimulatedPool, *, is_warm: bool) -> float:
    """Add speeds 1, 1 and 1/4, four slots each; return the best makespan of `COUNT` requests."""
    for name, speed in (("a", 1.0), ("b", 1.0), ("c", 0.25)):
        loaded = ["m"] if is_warm or name == "a" else []
        pool.machine(name, {"m": LOAD_S}, loaded=loaded, speed=speed)
    cold_s = 0.0 if is_warm else LOAD_S
    return best_makespan(
        [(0.0, 4, REQUEST_S), (cold_s, 4, REQUEST_S), (cold_s, 4, 4 * REQUEST_S)], COUNT
    )


def shares(pool: SimulatedPool) -> dict[str, int]:
    """Return how many tasks each service had last."""
    last = [each.places[-1] for each in pool.jobs.values() if each.places]
    return {name: last.count(name) for name in sorted(set(last))}


@pytest.mark.parametrize(("is_warm", "most"), [(True, 1.08), (False, 1.15)])
def test_unequal_machines_are_nearly_as_quick_as_can_be_at_their_first_run(
    is_warm: bool, most: float
) -> None:
    pool = SimulatedPool()
    best_s = three_machines(pool, is_warm=is_warm)
    pool.run(1)
    pool.submit(COUNT, wish="m")
    took_s = pool.run_until_done(within_s=200)
    assert took_s <= most * best_s, f"{took_s / best_s:.2f}, {shares(pool)}"


def test_free_slots_are_filled_in_one_round() -> None:
    pool = SimulatedPool()
    for name in "abc":
        pool.machine(name, {"m": LOAD_S}, loaded=["m"], slots=8, known_slots=8)
    pool.run(1)
    pool.submit(3, wish="m")  # each has answered once
    pool.run_until_done(within_s=30)
    pool.submit(24, wish="m")
    assert pool.run_until_done(within_s=30) <= 1.1 * REQUEST_S
    assert shares(pool) == {"a": 9, "b": 9, "c": 9}


def test_a_machine_that_goes_silent_loses_what_it_had_to_the_others() -> None:
    pool = SimulatedPool()
    machines = [
        pool.machine(name, {"m": LOAD_S}, loaded=["m"], first_token_s=20, token_gap_s=10)
        for name in "abc"
    ]
    pool.run(1)
    pool.submit(60, wish="m", output_tokens=80)
    pool.run(3)
    machines[0].hang()
    hung = [each for each in pool.jobs.values() if not each.ended and each.places[-1:] == ["a"]]
    silent = pool.now
    assert hung
    pool.run_until_done(within_s=90)
    assert all(not each.is_failed for each in pool.jobs.values())
    begun_again = [each.began[1] for each in hung]
    assert max(begun_again) <= silent + 20 + 5, "another has it once its clock has run out"
    later = [each for each in pool.jobs.values() if each.began[0] > silent + 10.5]
    assert all(each.places == [each.places[0]] != ["a"] for each in later)


def test_a_machine_that_fails_at_once_draws_nothing_to_itself() -> None:
    pool = SimulatedPool()
    machines = [pool.machine(name, {"m": LOAD_S}, loaded=["m"]) for name in "abc"]
    machines[0].fault = "fail"
    pool.run(1)
    pool.submit(20, wish="m")
    pool.run_until_done(within_s=60)
    assert all(not each.is_failed for each in pool.jobs.values())
    assert len(machines[0].began) <= 3, "one that never answered gets three at most"


def test_a_machine_that_is_mended_is_used_again() -> None:
    pool = SimulatedPool()
    machines = [pool.machine(name, {"m": LOAD_S}, loaded=["m"]) for name in "ab"]
    machines[0].fault = "fail"
    pool.run(1)
    pool.submit(10, wish="m")
    pool.run_until_done(within_s=60)
    machines[0].fault = ""
    pool.run(150)
    pool.submit(40, wish="m")
    pool.run_until_done(within_s=60)
    assert machines[0].answered >= 10


def test_a_conversation_stays_where_it_was_as_long_as_that_is_no_worse() -> None:
    pool = SimulatedPool()
    for name in "abc":
        pool.machine(name, {"m": LOAD_S}, loaded=["m"], known_slots=4)
    pool.run(1)
    for n in range(5):
        for talk in ("x", "y", "z"):
            pool.submit(wish=f"m#{talk}.{20 * n}.20")
            pool.run(0.05)
        pool.run_until_done(within_s=30)
    jobs = list(pool.jobs.values())
    for n in range(3):
        assert len({each.places[0] for each in jobs[n::3]}) == 1
    # The machine that had it is full: the talk goes on elsewhere at once.
    home = jobs[0].places[0]
    pool.submit(12, wish="m", output_tokens=400)
    pool.run(1)
    (moved,) = pool.submit(wish="m#x.100.20", priority=9)
    pool.run_until_done(within_s=100)
    assert home in shares(pool)
    assert moved.ended


def test_the_cloud_gets_nothing_unless_it_may_and_then_only_what_is_too_much() -> None:
    pool = SimulatedPool()
    lan = pool.machine("lan", {"m": LOAD_S}, loaded=["m"], slots=2, known_slots=2)
    cloud = pool.machine("cloud", {"m": 0.0}, is_cloud=True, slots=50, known_slots=8)
    pool.run(1)
    pool.submit(40, wish="m", output_tokens=200)
    pool.run_until_done(within_s=400)
    assert cloud.began == []
    pool.submit(2, wish="m;cloud=overflow", output_tokens=200)
    pool.run_until_done(within_s=60)
    assert cloud.began == [], "the LAN was idle"
    pool.submit(40, wish="m;cloud=overflow", output_tokens=200)
    pool.run_until_done(within_s=60)
    assert cloud.answered > 20
    assert lan.answered > 42


def test_a_minutes_budget_shared_by_three_workers_is_never_exceeded() -> None:
    pool = SimulatedPool()
    first = pool.machine("cloud", {"m": 0.0}, is_cloud=True, slots=50, minute_requests=30)
    for n in range(2):
        pool.worker(f"worker {n}", [first])
    pool.run(1)
    for _ in range(60):
        pool.submit(28, wish="m;cloud=yes")
        pool.run(60)
    pool.run_until_done(within_s=600)
    assert all(not each.is_failed for each in pool.jobs.values())
    assert first.most_in_a_minute <= 30
    assert first.answered == 60 * 28


NAMES = ("m1", "m2", "m3", "m4")
TALK_S, TALKS = 0.5, 120
#: Of 900 requests for each model, if a third model is loaded on each machine where it is best.
BEST_BATCH_S = 51.0


def five_machines() -> SimulatedPool:
    """Return a pool of speeds 1, 1, 1/2, 1/2, 1/4 with four models, two of them loaded on each."""
    pool = SimulatedPool()
    for n, speed in enumerate((1.0, 1.0, 0.5, 0.5, 0.25)):
        loaded = [NAMES[n % 4], NAMES[(n + 1) % 4]]
        pool.machine(f"s{n}", dict.fromkeys(NAMES, LOAD_S), loaded=loaded, speed=speed)
    pool.run(1)
    return pool


def mixed(*, talks: int, batch: int) -> tuple[float, float]:
    """Return the p95 of interactive first tokens, and the batch's makespan; 0 for none."""
    pool = five_machines()
    asked = [job for name in NAMES if batch for job in pool.submit(batch, wish=name, priority=3)]
    pool.run(5)  # both have begun
    talked = []
    for n in range(talks):
        talked += pool.submit(wish=f"{NAMES[n % 2]}#.20.20", priority=9)
        pool.run(TALK_S)
    pool.run_until_done(within_s=900)
    assert all(not each.is_failed for each in pool.jobs.values())
    first = sorted(each.first_s for each in talked)
    last = max((each.ended - each.submitted for each in asked), default=0.0)
    return (first[int(0.95 * len(first))] if first else 0.0), last


def test_who_waits_at_a_screen_hardly_notices_the_batch_and_it_hardly_loses() -> None:
    alone_s, _ = mixed(talks=TALKS, batch=0)
    _, undisturbed_s = mixed(talks=0, batch=900)
    beside_s, batch_s = mixed(talks=TALKS, batch=900)
    assert undisturbed_s <= 1.5 * BEST_BATCH_S, f"{undisturbed_s:.1f} s"
    assert batch_s > 0.8 * TALK_S * TALKS, "there was no batch beside some of them"
    assert beside_s <= 1.5 * alone_s, f"{alone_s:.3f} s alone, {beside_s:.3f} s beside"
    assert batch_s <= 1.1 * undisturbed_s, f"{undisturbed_s:.1f} s alone, {batch_s:.1f} s beside"


@pytest.mark.parametrize(
    ("prompt_tokens", "output_tokens", "most"), [(2000, 20, 1.5), (2000, 1, 1.5), (20, 1, 5)]
)
def test_slots_are_found_whatever_the_requests_are_like(
    prompt_tokens: int, output_tokens: int, most: float
) -> None:
    pool = SimulatedPool()
    pool.machine("a", {"m": LOAD_S}, loaded=["m"], slots=8)
    takes_s = prompt_tokens / 2000 + output_tokens / 40
    pool.run(1)
    pool.submit(80, wish="m", prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    pool.run_until_done(within_s=200)
    pool.submit(80, wish="m", prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    took_s = pool.run_until_done(within_s=200)
    assert took_s <= most * best_makespan([(0.0, 8, takes_s)], 80)


def test_no_request_waits_for_a_load_that_others_need_not_wait_for() -> None:
    pool = SimulatedPool()
    pool.machine("a", {"m": 30.0}, loaded=["m"], slots=1)
    for name in "bc":
        pool.machine(name, {"m": 30.0}, slots=4)
    pool.run(1)
    pool.submit(5, wish="m", output_tokens=1)
    assert pool.run_until_done(within_s=60) <= 2.0
