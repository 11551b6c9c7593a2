"""Stand-in Ollamas as processes, for as long as a scene needs them."""

from __future__ import annotations

import heapq
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from bench.raw_loop import HOME
from d8mesh.errors import D8Error

#: Tokens per second of a machine of speed 1.
TOKENS_PER_S: Final = 40.0
SLOTS: Final = 4
#: Of each question: "say 20 words".
PROMPT_WORDS: Final = 3
_SAID: Final = re.compile(r"http://[\d.]+:(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine with an Ollama.

    Args:
        speed: times `TOKENS_PER_S`; 0: all tokens at once.
        loaded: models in memory at the start.
        prompt_s: from a slot to the first token, at speed 1.
    """

    models: tuple[str, ...]
    loaded: tuple[str, ...] = ()
    speed: float = 1.0
    slots: int = SLOTS
    load_s: float = 0.0
    prompt_s: float = 0.0

    def request_s(self, tokens: int) -> float:
        """Return how long an answer takes that has a slot."""
        return tokens / (TOKENS_PER_S * self.speed)


@contextmanager
def standins(machines: Sequence[Machine]) -> Iterator[list[str]]:
    """Run a stand-in for each machine; yield their addresses."""
    with ExitStack() as stack:
        started = [stack.enter_context(_started(each)) for each in machines]
        yield [_url(each) for each in started]


@contextmanager
def _started(machine: Machine) -> Iterator[subprocess.Popen[str]]:
    command = [
        *(sys.executable, "-m", "tests.ollama_standin", "--with-parent", "--port", "0"),
        *("--models", *machine.models, "--loaded", *machine.loaded),
        *("--tokens-per-s", str(TOKENS_PER_S if machine.speed else 0)),
        *("--prompt-tokens-per-s", str(PROMPT_WORDS / machine.prompt_s if machine.prompt_s else 0)),
        *("--speed", str(machine.speed or 1)),
        *("--load-s", str(machine.load_s), "--num-parallel", str(machine.slots)),
    ]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=HOME, stdin=pipe, stdout=pipe, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    found = _SAID.search(process.stdout.readline())
    if found is None:
        raise D8Error("a stand-in did not start")
    return f"http://127.0.0.1:{found[1]}"


def best_s(machines: Sequence[Machine], model: str, count: int, tokens: int) -> float:
    """Return the makespan of the best possible schedule of `count` equal requests.

    Each goes where it is finished first, known in advance: that is the best for equal requests.
    """
    ends: list[tuple[float, float]] = []
    for machine in machines:
        takes_s = machine.request_s(tokens)
        begins_s = 0.0 if model in machine.loaded else machine.load_s
        ends += [(begins_s + takes_s, takes_s)] * machine.slots
    heapq.heapify(ends)
    last_s = 0.0
    for _ in range(count):
        last_s, takes_s = heapq.heappop(ends)
        heapq.heappush(ends, (last_s + takes_s, takes_s))
    return last_s
