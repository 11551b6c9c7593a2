"""Processes that a handler forks: copies of this one, which may do nothing in its place.

A copy whose handler returns, or raises, would go on as the worker: with its sockets, its locks
and the result of a task that the original hands in.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final, NoReturn

from d8mesh.handlers.tracebacks import traceback_text

#: One entry for each fork between the first process and this one.
FORKS: Final[list[int]] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: FORKS.append(os.getpid()))


def end_copy(error: BaseException | None) -> NoReturn:
    """End this copy, without what Python does at its end: that is the original's.

    Args:
        error: what was raised in it; told on standard error.
    """
    if error is None or type(error) is SystemExit:
        code = None if error is None else error.code
        os._exit(code & 0xFF if type(code) is int else code is not None)
    text = f"in a process that a handler forked:\n{traceback_text(error)}\n"
    with contextlib.suppress(OSError):  # no stream: another thread may have held its lock
        os.write(2, text.encode("utf-8", "replace"))
    os._exit(1)
