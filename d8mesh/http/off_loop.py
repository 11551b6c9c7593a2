"""What would hold up the loop runs on a thread: work on what is large."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

_T = TypeVar("_T")
_From = TypeVar("_From")
#: Work on fewer bytes takes less than a millisecond or two, which a switch of threads costs too.
OFF_LOOP_BYTES: Final = 65_536
#: Large bodies at a time: each costs several times its size, and Python runs one of them anyway.
_THREADS: Final = 2

_threads: Final = ThreadPoolExecutor(_THREADS, thread_name_prefix="http-large")


async def off_loop(size_bytes: int, call: Callable[[_From], _T], argument: _From) -> _T:
    """Return what `call` makes of its argument: at once, or on a thread if that is large."""
    if size_bytes <= OFF_LOOP_BYTES:
        return call(argument)
    return await asyncio.get_running_loop().run_in_executor(_threads, call, argument)
