"""Runs a test that is a coroutine in an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

_P = ParamSpec("_P")


def in_loop(test: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, None]:
    """Return it as a test that pytest can call."""

    @wraps(test)
    def run(*args: _P.args, **given: _P.kwargs) -> None:
        asyncio.run(test(*args, **given))

    return run
