"""Work on large bodies leaves the loop free."""

from __future__ import annotations

import asyncio
import threading

import pytest

from d8mesh.http.off_loop import OFF_LOOP_BYTES, off_loop


def test_only_much_work_goes_to_a_thread() -> None:
    async def threads() -> list[bool]:
        here = threading.get_ident()
        sizes = (OFF_LOOP_BYTES, OFF_LOOP_BYTES + 1)
        return [
            await off_loop(size, lambda body: threading.get_ident() == here, b"") for size in sizes
        ]

    assert asyncio.run(threads()) == [True, False]


def test_the_loop_goes_on_meanwhile() -> None:
    async def scenario() -> str:
        released = threading.Event()
        work = asyncio.ensure_future(
            off_loop(OFF_LOOP_BYTES + 1, lambda body: str(released.wait(20)), b"")
        )
        await asyncio.sleep(0)
        released.set()
        return await work

    assert asyncio.run(scenario()) == "True"


def test_large_things_are_worked_on_a_few_at_a_time() -> None:
    async def most() -> int:
        running, seen = [0], [0]
        lock, both = threading.Lock(), threading.Semaphore(0)

        def work(number: int) -> None:
            with lock:
                running[0] += 1
                seen[0] = max(seen[0], running[0])
            both.release()
            if number == 0:
                for _ in range(2):  # itself and another
                    assert both.acquire(timeout=20)
            with lock:
                running[0] -= 1

        size = OFF_LOOP_BYTES + 1
        await asyncio.gather(*(off_loop(size, work, number) for number in range(8)))
        return seen[0]

    assert asyncio.run(most()) == 2


def test_what_it_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        asyncio.run(off_loop(OFF_LOOP_BYTES + 1, int, b"x"))
