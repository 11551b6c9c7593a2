"""Coroutines share a loop: whatever one raises, or does to the loop, ends it and no other."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from d8mesh.errors import HandlerError, TaskCancelledError
from d8mesh.nodes.worker.coroutines import Coroutines

PATIENCE_S = 30.0
#: Far below `FOREVER_S`: "at once" on a busy machine.
SOON_S = 10.0
FOREVER_S = 600.0


class Odd(BaseException):
    """None of Python's own."""


@pytest.fixture
def coroutines() -> Iterator[Coroutines]:
    coroutines = Coroutines()
    yield coroutines
    coroutines.close()


def never() -> bool:
    return False


async def ok() -> str:
    await asyncio.sleep(0.001)
    return "ok"


def raising(error: BaseException) -> Callable[[], Any]:
    def callback() -> None:
        raise error

    return callback


async def itself(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


async def in_a_callback(error: BaseException) -> None:
    asyncio.get_running_loop().call_soon(raising(error))
    await asyncio.sleep(FOREVER_S)


async def in_a_later_callback(error: BaseException) -> None:
    asyncio.get_running_loop().call_later(0.01, raising(error))
    await asyncio.sleep(FOREVER_S)


async def in_a_task(error: BaseException) -> None:
    task = asyncio.create_task(itself(error))
    task.add_done_callback(lambda done: done.exception())
    if not isinstance(error, (SystemExit, KeyboardInterrupt)):
        await task
    await asyncio.sleep(FOREVER_S)


async def in_a_generator(error: BaseException) -> None:
    async def numbers() -> Any:
        yield 1
        raise error

    async for _ in numbers():
        pass


@pytest.mark.parametrize(
    "way", [itself, in_a_callback, in_a_later_callback, in_a_task, in_a_generator]
)
@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Odd("x")], ids=repr
)
def test_whatever_is_raised_ends_its_own_run_at_once_and_no_other(
    coroutines: Coroutines, way: Any, error: BaseException
) -> None:
    goes_on = threading.Event()

    async def neighbour() -> str:
        while not goes_on.is_set():
            await asyncio.sleep(0.001)
        return "well"

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(coroutines.run, neighbour(), never)
        began = time.monotonic()
        with pytest.raises(type(error)):
            coroutines.run(way(error), never)
        assert time.monotonic() - began < SOON_S
        assert coroutines.run(ok(), never) == "ok"
        goes_on.set()
        assert other.result(PATIENCE_S) == "well"


def test_a_cancellation_of_its_own_is_its_end(coroutines: Coroutines) -> None:
    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(FOREVER_S)

    for way in (itself(asyncio.CancelledError()), cancels_itself()):
        with pytest.raises(asyncio.CancelledError):
            coroutines.run(way, never)
    assert coroutines.run(ok(), never) == "ok"


async def stops() -> None:
    asyncio.get_running_loop().stop()


async def stops_later() -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.stop)
    await asyncio.sleep(FOREVER_S)


async def closes() -> None:
    asyncio.get_running_loop().close()


async def closes_in_a_thread() -> None:
    await asyncio.to_thread(asyncio.get_running_loop().close)


@pytest.mark.parametrize("way", [stops, stops_later, closes, closes_in_a_thread])
def test_the_shared_loop_can_be_neither_stopped_nor_closed(
    coroutines: Coroutines, way: Any
) -> None:
    with pytest.raises(HandlerError, match="shared by all coroutines"):
        coroutines.run(way(), never)
    assert coroutines.run(ok(), never) == "ok"


def test_a_loop_that_is_broken_ends_its_runs_and_is_replaced(coroutines: Coroutines) -> None:
    async def breaks() -> None:
        loop: Any = asyncio.get_running_loop()
        loop._run_once = raising(OSError("broken"))
        await asyncio.sleep(FOREVER_S)

    with pytest.raises(HandlerError, match="broken"):
        coroutines.run(breaks(), never)
    assert coroutines.run(ok(), never) == "ok"


def test_a_stop_by_the_back_door_harms_nobody(coroutines: Coroutines) -> None:
    async def forced() -> str:
        loop: Any = asyncio.get_running_loop()
        type(loop).stop(loop)
        await asyncio.sleep(0.01)
        return "goes on"

    assert coroutines.run(forced(), never) == "goes on"


def test_a_cancelled_run_is_left_at_once_and_its_coroutine_cleans_up(
    coroutines: Coroutines,
) -> None:
    begun, cleaned = threading.Event(), threading.Event()

    async def waits() -> None:
        begun.set()
        try:
            await asyncio.sleep(FOREVER_S)
        finally:
            cleaned.set()

    with pytest.raises(TaskCancelledError):
        coroutines.run(waits(), begun.is_set)
    assert cleaned.wait(PATIENCE_S)


def test_any_awaitable_is_awaited(coroutines: Coroutines) -> None:
    class Later:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return "later"

    assert coroutines.run(Later(), never) == "later"


def test_an_exit_that_nobody_owns_ends_nothing(coroutines: Coroutines) -> None:
    async def from_a_foreign_thread() -> str:
        loop = asyncio.get_running_loop()
        done = threading.Event()

        def schedule() -> None:
            loop.call_soon_threadsafe(sys.exit)
            loop.call_soon_threadsafe(done.set)

        others = [asyncio.create_task(asyncio.sleep(FOREVER_S)) for _ in range(2)]
        threading.Thread(target=schedule).start()
        while not done.is_set():
            await asyncio.sleep(0.001)
        for other in others:
            other.cancel()
        return "lives"

    goes_on = threading.Event()

    async def neighbour() -> str:
        while not goes_on.is_set():
            await asyncio.sleep(0.001)
        return "well"

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(coroutines.run, neighbour(), never)
        assert coroutines.run(ok(), never) == "ok"  # both have begun by then
        assert coroutines.run(from_a_foreign_thread(), never) == "lives"
        goes_on.set()
        assert other.result(PATIENCE_S) == "well"
