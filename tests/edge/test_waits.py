"""Waits in slices: what Ctrl-C ends everywhere."""

from __future__ import annotations

import ast
import threading
import time
from pathlib import Path

import pytest

import d8mesh
from d8mesh.edge.waits import CTRL_C_S, join, wait_for

PACKAGE = Path(d8mesh.__file__).parent
#: What a person's main thread may be in.
PLACES = ("nodes/client", "nodes/worker/node.py", "apps")


class Counted(threading.Event):
    """An event that notes how long each wait for it may take."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        if len(self.waits) > 3:
            self.set()
        return super().wait(0 if timeout is None else min(timeout, 0.01))


@pytest.mark.parametrize("timeout_s", [None, 1e9])
def test_a_long_wait_is_done_in_slices(timeout_s: float | None) -> None:
    event = Counted()
    assert wait_for(event, timeout_s)
    assert len(event.waits) == 4
    assert all(wait_s is not None and wait_s <= CTRL_C_S for wait_s in event.waits)


def test_a_wait_ends_with_its_time() -> None:
    begun = time.monotonic()
    assert not wait_for(threading.Event(), 0.05)
    assert not wait_for(threading.Event(), -1)
    stay = threading.Event()
    thread = threading.Thread(target=stay.wait)
    thread.start()
    assert not join(thread, 0.05)
    stay.set()
    assert join(thread)
    assert time.monotonic() - begun < 10


def test_no_main_thread_waits_without_an_end() -> None:
    """On Windows Ctrl-C would not be seen: `edge.waits` is for that."""
    found = set[str]()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(PLACES) or name.startswith("nodes/client/aio/"):
            continue  # what coroutines wait for, the loop waits for
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found |= {f"{name}:{function.name}" for _ in _endless(function)}
    assert found == set()


def _endless(function: ast.AST) -> list[ast.Call]:
    """Calls of ``x.wait()``, ``x.join()``, ``x.get()`` with no argument at all."""
    return [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("wait", "join", "get", "result")
        and not node.args
        and not node.keywords
        and "process" not in ast.unparse(node.func.value)  # one that was killed
    ]
