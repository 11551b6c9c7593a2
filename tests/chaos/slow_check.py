"""Do slow peers slow only themselves? ``python -m tests.chaos.slow_check [--seconds 5]``.

A mesh on loopback: healthy clients, over ZeroMQ and over REST, do what they can, in turns
with and without the slow peers of `tests.chaos.slow` beside them. Prints the rates and their
ratio as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from d8mesh import Client
from d8mesh.config import Config
from d8mesh.errors import D8Error
from tests.chaos.rest import call
from tests.chaos.world import World
from tests.end_to_end.processes import until

BATCH: Final = 200
PATIENCE_S: Final = 60.0
#: Slow peers are there for so long before anything is measured.
SETTLE_S: Final = 2.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each of the rounds (5)")
    parser.add_argument("--rounds", type=int, default=3, help="of each sort (3)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="d8-slow-") as folder:
        print(json.dumps(measure(Path(folder), seconds=given.seconds, rounds=given.rounds)))


def measure(folder: Path, *, seconds: float, rounds: int) -> dict[str, float]:
    """Return the median rates of both, and their ratios."""
    rates: dict[str, list[float]] = {name: [] for name in ("tasks", "rest")}
    slowed: dict[str, list[float]] = {name: [] for name in ("tasks", "rest")}
    with World(folder, None) as world:
        world.command(0, "orchestrator", "orchestrator")
        world.command(0, "worker", "worker", "--slots", "2")
        until(lambda: call(world.log, "/health")[0] == 200, "the orchestrator", PATIENCE_S)
        config = Config(mesh=world.mesh, interfaces=("127.0.0.1",))
        with Client(world.url, config=config) as client:
            client.submit("echo", {}).result(PATIENCE_S)
            for _ in range(rounds):
                _round(world, client, seconds, rates)
                port = str(world.broker_port)
                command = ["tests.chaos.slow", str(world.log), port, world.mesh]
                slow = world.start(0, "slow", command)
                time.sleep(SETTLE_S)
                if slow.poll() is not None:
                    raise D8Error(f"the slow peers ended: see {folder}/slow.out")
                _round(world, client, seconds, slowed)
                slow.kill()
                slow.wait()
    found: dict[str, float] = {}
    for name in rates:
        alone, beside = statistics.median(rates[name]), statistics.median(slowed[name])
        found |= {f"{name}_per_s": round(alone), f"{name}_per_s_beside_slow": round(beside)}
        found[f"{name}_ratio"] = round(beside / alone, 3)
    return found


def _round(world: World, client: Client, seconds: float, rates: dict[str, list[float]]) -> None:
    rates["tasks"].append(_tasks_per_s(client, seconds))
    rates["rest"].append(_requests_per_s(world.log, seconds))


def _tasks_per_s(client: Client, seconds: float) -> float:
    """Keep two batches under way; every outcome must come."""
    count, started = 0, time.monotonic()
    under_way = [client.submit_many("echo", [{"n": n} for n in range(BATCH)]) for _ in range(2)]
    while (now := time.monotonic()) < started + seconds:
        for task in under_way.pop(0):
            task.result(PATIENCE_S)
        count += BATCH
        under_way.append(client.submit_many("echo", [{"n": n} for n in range(BATCH)]))
    for batch in under_way:
        for task in batch:
            task.result(PATIENCE_S)
    return count / (now - started)


def _requests_per_s(log: Path, seconds: float) -> float:
    """Ask for the health over several connections at once."""
    stop = threading.Event()
    counts = [0] * 4

    def ask(number: int) -> None:
        while not stop.is_set():
            status, _ = call(log, "/health")
            counts[number] += status == 200

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(counts))]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


if __name__ == "__main__":
    main()
