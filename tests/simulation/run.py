"""The command `simulate`: as many seeds as you like, and what they went through."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from d8mesh.config import Config
from tests.simulation.world import Violation, World


def run(config: Config, options: argparse.Namespace) -> int:
    """Run seeds; exit code 1 if one of them broke a promise."""
    del config
    parser = argparse.ArgumentParser(prog="start_d8.py simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    arguments = parser.parse_args(options.rest)
    total: Counter[str] = Counter()
    started = told = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="d8-simulate-") as scratch:
        for number in range(arguments.seeds):
            seed = arguments.first + number
            folder = Path(scratch) / str(seed)
            folder.mkdir()
            try:
                counts = World(seed, folder).run()
            except Violation as error:
                print(error)
                return 1
            finally:
                for file in folder.iterdir():
                    file.unlink()
            total += counts.faults
            total["tasks"] += counts.tasks
            total["executions"] += counts.executions
            if time.monotonic() - told > 5:
                told = time.monotonic()
                print(f"{number + 1} seeds, {total['tasks']} tasks, no violation", flush=True)
    seconds = time.monotonic() - started
    print(f"{arguments.seeds} seeds in {seconds:.0f} s without a violation:")
    for name, count in sorted(total.items()):
        print(f"  {name}: {count}")
    return 0
