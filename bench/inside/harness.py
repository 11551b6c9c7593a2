"""One line of JSON in, one line out: how the bench speaks with what it measures.

Asked ``{"ask": "throughput", "tasks": N}`` it answers ``{"rate": tasks/s}``; asked ``{"ask":
"latencies", "count": N}`` it answers ``{"seconds": [...]}``. The first line of all, unasked, is
``{"versions": {...}}``: everything stands. It ends with its standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, Final, Protocol

#: Tasks of one peer under way at most, where it has no bound of its own.
WINDOW: Final = 4000

#: Only answers go to the bench; what a peer prints goes where errors go.
_answers: Final = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)


class Bench(Protocol):
    """What a peer's script does when asked."""

    def all_of(self, count: int) -> None:
        """Run `count` no-op tasks, as many at a time as the peer likes; return after the last."""

    def one(self) -> None:
        """Run one no-op task and return when its result is there."""


def arguments() -> dict[str, Any]:
    """Return what the bench says on the command line: workers, payload, port, folder."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    return told


def payload(told: dict[str, Any]) -> bytes:
    """Return what each task carries, there and back."""
    return b"x" * int(told["payload_bytes"])


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of installed packages."""
    return {name: metadata.version(name) for name in packages}


def serve(found: dict[str, str], bench: Bench) -> None:
    """Answer what is asked until standard input ends."""
    tell({"versions": found})
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["ask"] == "throughput":
            begun = time.perf_counter()
            bench.all_of(asked["tasks"])
            tell({"rate": asked["tasks"] / (time.perf_counter() - begun)})
        else:
            tell({"seconds": [_timed(bench.one) for _ in range(asked["count"])]})


def tell(answer: dict[str, Any]) -> None:
    """Print one answer."""
    print(json.dumps(answer), file=_answers, flush=True)


def start(*command: str) -> subprocess.Popen[bytes]:
    """Start a worker of the peer."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def python(*arguments: str) -> Sequence[str]:
    """Return the command of this environment's Python."""
    return [sys.executable, *arguments]


def _timed(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
