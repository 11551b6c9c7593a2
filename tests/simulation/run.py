"""The command `simulate`: as many seeds as you like, and what they went through."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from d8mesh.config import Config
from tests.simulation.safety import Violation
from tests.simulation.world import World

#: Seeds that one process is given at a time.
SHARE: Final = 25
PROGRESS_S: Final = 5.0


def run(config: Config, options: argparse.Namespace) -> int:
    """Run seeds; exit code 1 if one of them broke a promise."""
    del config
    parser = argparse.ArgumentParser(prog="start_d8.py simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args(options.rest)
    total: Counter[str] = Counter()
    done, started = 0, time.monotonic()
    told = started
    for seeds, counts in _results(arguments.first, arguments.seeds, arguments.jobs):
        done += seeds
        if isinstance(counts, str):
            print(counts)
            return 1
        total += counts
        if time.monotonic() - told > PROGRESS_S:
            told = time.monotonic()
            print(f"{done} seeds, {total['tasks']} tasks, no violation", flush=True)
    seconds = time.monotonic() - started
    print(f"{done} seeds in {seconds:.0f} s ({done / seconds:.1f}/s) without a violation:")
    for name, count in sorted(total.items()):
        print(f"  {name}: {count}")
    return 0


def run_seeds(seeds: range) -> tuple[int, Counter[str] | str]:
    """Run some seeds; return how many, and what they went through or the violation."""
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="d8-simulate-") as scratch:
        for seed in seeds:
            folder = Path(scratch) / str(seed)
            folder.mkdir()
            try:
                counts = World(seed, folder).run()
            except Violation as error:
                return len(seeds), str(error)
            except Exception as error:
                raise RuntimeError(f"seed {seed}: {error!r}") from error
            for file in folder.iterdir():
                file.unlink()
            total += counts.faults
            total["tasks"] += counts.tasks
            total["executions"] += counts.executions
    return len(seeds), total


def _results(first: int, count: int, jobs: int) -> Iterator[tuple[int, Counter[str] | str]]:
    shares = [
        range(start, min(start + SHARE, first + count))
        for start in range(first, first + count, SHARE)
    ]
    if jobs <= 1:
        yield from map(run_seeds, shares)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as broker:
        try:
            yield from broker.map(run_seeds, shares)
        finally:
            broker.shutdown(cancel_futures=True)
