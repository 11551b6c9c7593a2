"""How long callers wait: what they may say, and what is left of it."""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

from d8mesh.errors import InvalidTaskError, WaitTimeoutError

#: A question's time when the caller names none.
DEFAULT_QUESTION_S: Final = 30.0
#: A submission gives up this long before its submitter does, who so learns why.
EARLY_S: Final = 0.5
_WITHIN_S: Final = re.compile(r" has not come within \S+ s\b")

_P = ParamSpec("_P")
_T = TypeVar("_T")


def takes_timeout_s(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a call that takes `timeout` take it as ``timeout_s`` too, its earlier name."""

    @functools.wraps(call)
    def renamed(*args: Any, **options: Any) -> _T:
        if "timeout_s" in options:
            options["timeout"] = options.pop("timeout_s")
        return call(*args, **options)

    return renamed


def bounded(timeout_s: float | None) -> float | None:
    """Return a wait as the system takes it; InvalidTaskError: no number of seconds, nor None."""
    if timeout_s is None:
        return None
    is_number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
    if not is_number or timeout_s != timeout_s:  # only NaN is not itself
        raise InvalidTaskError(f"timeout: saw {timeout_s!r:.80}, expected seconds, or None")
    return min(timeout_s, threading.TIMEOUT_MAX)


def give_up(timeout_s: float | None) -> float | None:
    """Return when a submission may wait for room no longer: before its submitter's wait is over."""
    timeout_s = bounded(timeout_s)
    return None if timeout_s is None else time.monotonic() + timeout_s - EARLY_S


def countdown(timeout_s: float | None) -> Callable[[], float | None]:
    """Return what tells how much of `timeout_s` is left; raises what `bounded` does."""
    whole_s = bounded(timeout_s)
    if whole_s is None:
        return lambda: None
    until = time.monotonic() + whole_s
    return lambda: max(0.0, until - time.monotonic())


def told_whole(error: WaitTimeoutError, timeout_s: float | None) -> WaitTimeoutError:
    """Return the error of a wait that was a part of one: the whole is told, not the rest."""
    text = _WITHIN_S.sub(f" has not come within {timeout_s:g} s", str(error), count=1)
    whole = WaitTimeoutError(text)
    whole.task_id = error.task_id
    return whole


def timed_out(what: str, timeout_s: float | None, why: str = "") -> WaitTimeoutError:
    """Return the error of a wait for `what` that is over; `why`, for people, may be empty."""
    because = f": {why}" if why else ""
    return WaitTimeoutError(f"{what} has not come within {timeout_s:g} s{because}")
