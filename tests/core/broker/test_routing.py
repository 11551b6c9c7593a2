"""Who gets a placed task: by estimate, and how near that comes to the best schedule."""

from __future__ import annotations

from tests.core.machines import Machine, Pool


def test_three_machines_that_have_it_loaded_come_near_the_best_schedule() -> None:
    pool = Pool([Machine("a"), Machine("b"), Machine("c", speed=0.25)])
    pool.submit(300, model="m")
    took_s = pool.run(300)
    assert took_s <= 1.08 * 17.0, took_s


def test_three_machines_of_which_two_must_load_come_near_the_best_schedule() -> None:
    pool = Pool(
        [
            Machine("a"),
            Machine("b", is_loaded=False),
            Machine("c", speed=0.25, is_loaded=False),
        ]
    )
    pool.submit(300, model="m")
    took_s = pool.run(300)
    assert took_s <= 1.15 * 21.5, took_s
