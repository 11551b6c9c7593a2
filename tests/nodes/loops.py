"""Event loops for tests: the platform's, and one that cannot watch descriptors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from tests.nodes.mesh import PATIENCE_S

T = TypeVar("T")


class WithoutReaders(asyncio.SelectorEventLoop):
    """What Windows' default loop is like."""

    def add_reader(self, *_: Any) -> None:  # type: ignore[override]
        raise NotImplementedError

    def remove_reader(self, fd: Any) -> bool:
        raise NotImplementedError


LOOPS = {"readers": asyncio.SelectorEventLoop, "no readers": WithoutReaders}


def run(
    program: Coroutine[Any, Any, T],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop,
) -> T:
    """Run `program` in a loop that minds who calls it from where; see that nothing is left."""
    before = own_threads()
    with asyncio.Runner(debug=True, loop_factory=loop_factory) as runner:
        runner.get_loop().slow_callback_duration = PATIENCE_S

        async def bounded() -> T:
            async with asyncio.timeout(3 * PATIENCE_S):
                return await program

        result = runner.run(bounded())
        assert asyncio.all_tasks(runner.get_loop()) == set()
    for thread in own_threads() - before:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), thread
    return result


def own_threads() -> set[threading.Thread]:
    """Return the threads that clients have, and not those of brokers and workers beside them."""
    names = ("d8-reconnect", "d8-watch", "d8-errand", "exchange")
    return {each for each in threading.enumerate() if each.name.startswith(names)}


async def until(what: Callable[[], object | Awaitable[object]]) -> None:
    """Wait until `what` is true."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            told = what()
            if await told if isinstance(told, Awaitable) else told:
                return
            await asyncio.sleep(0.01)
