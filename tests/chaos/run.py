"""The command `chaos`: a real mesh under load while its parts are killed, paused and cut off.

Every run prints its seed, what happened, and the table of counts of docs/RELIABILITY.md. The exit
code is 1 if anything acknowledged was lost, recorded twice, wrong or stuck, or if a process died
of which nobody asked it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from d8mesh.config import Config
from d8mesh.errors import D8Error
from tests.chaos import disk, schedule, verdict
from tests.chaos.stage import OTHER_MACHINES, Stage
from tests.chaos.world import World
from tests.end_to_end import hosts
from tests.end_to_end.hosts import Lan


def run(config: Config, options: argparse.Namespace) -> int:
    """Run the fault runner with the arguments of the command line."""
    del config
    arguments = _parser().parse_args(options.rest)
    if not sys.platform.startswith("linux"):
        raise D8Error("chaos looks processes up in /proc: run it on Linux")
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    reason = "asked for" if arguments.loopback else hosts.available()
    where = f"loopback only ({reason})" if reason else "network namespaces"
    _say(arguments, f"chaos: seed {seed}, {arguments.minutes:g} min, {where}")
    folder = Path(arguments.keep or tempfile.mkdtemp(prefix="d8-chaos-"))
    if (folder / "log").exists():
        raise D8Error(f"{folder} holds an earlier run: give --keep a new folder")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it clears up
    lan = None if reason else Lan(hosts=arguments.workers + OTHER_MACHINES)
    counts = run_in(folder, lan, seed=seed, arguments=arguments)
    told = {"seed": seed, "where": where, **counts}
    if arguments.json:
        print(json.dumps(told, ensure_ascii=False))
    else:
        for name, value in told.items():
            print(f"{name:>34}  {value}")
    if is_good(counts) and not arguments.keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _say(arguments, f"kept: {folder}")
    return 0 if is_good(counts) else 1


def is_good(counts: dict[str, object]) -> bool:
    """Tell whether everything that was promised was kept."""
    bad = ("lost", "dup_results", "wrong", "stuck", "crashes")
    return not any(counts[name] for name in bad)


def run_in(
    folder: Path, lan: Lan | None, *, seed: int, arguments: argparse.Namespace
) -> dict[str, object]:
    """Run one history in `folder` and return its counts."""
    no_disk = "asked for" if lan is None else disk.unavailable()
    if no_disk:
        _say(arguments, f"chaos: the disk is not filled ({no_disk})")
    seconds, has_disk = arguments.minutes * 60, not no_disk
    events = schedule.draw(
        seed=seed,
        seconds=seconds,
        has_network=lan is not None,
        has_disk=has_disk,
        has_members=arguments.approve,
    )
    with World(folder, lan, has_disk=has_disk, approves=arguments.approve) as world:
        stage = Stage(world, arguments.workers, arguments.rate)
        stage.set_up(arguments.backlog)
        stage.play(events, lambda text: _say(arguments, text))
        is_drained = stage.drain(lambda text: _say(arguments, text))
        stage.end()
        counts = verdict.judge(folder, stage.happened, is_drained=is_drained)
        launcher = folder / "orchestrator" / "logs" / "orchestrator.log"
        counts["crashes"] = stage.crashes + verdict.crashes_in(launcher, stage.happened)
        if has_disk and (arguments.keep or not is_good(counts)):
            shutil.copytree(folder / "orchestrator", folder / "orchestrator.kept")
    return counts


def _say(arguments: argparse.Namespace, text: str) -> None:
    print(text, file=sys.stderr if arguments.json else sys.stdout, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="start_d8.py chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long (3)")
    parser.add_argument("--seed", type=int, help="the same seed, the same faults at the same times")
    parser.add_argument("--workers", type=int, default=4, help="mesh workers (4)")
    parser.add_argument("--rate", type=float, default=160.0, help="tasks per second (160)")
    parser.add_argument("--backlog", type=int, default=0, help="queued tasks nobody offers (0)")
    parser.add_argument("--approve", action="store_true", help="D8_JOIN=approve, and revocations")
    parser.add_argument("--loopback", action="store_true", help="no network namespaces")
    parser.add_argument("--json", action="store_true", help="the table as one JSON object")
    parser.add_argument("--keep", metavar="DIR", help="run in this new folder and keep it")
    return parser
