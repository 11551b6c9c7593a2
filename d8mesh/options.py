"""What each command takes on its command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

TASK_STATES: Final = ("queued", "delayed", "running", "completed", "failed", "cancelled")
#: What `tasks` can do, in words, and how many ids that takes.
TASK_ACTIONS: Final = {
    "list": ("tasks, oldest first", ""),
    "show": ("all that is known of tasks", "+"),
    "replay": ("submit failed or cancelled tasks anew, under new ids", "*"),
    "cancel": ("cancel tasks", "+"),
}


def orchestrator(parser: argparse.ArgumentParser) -> None:
    """Add what `orchestrator` takes."""
    parser.add_argument("--port", help="the REST port (FLASK_PORT)")
    parser.add_argument("--data", metavar="DIR", help="the data folder (D8_DATA_DIR)")


def worker(parser: argparse.ArgumentParser) -> None:
    """Add what `worker` takes."""
    parser.add_argument("--type", help="deepseek or a name of your own (WORKER_TYPE)")
    parser.add_argument(
        "--tasks",
        action="append",
        default=[],
        metavar="MODULE",
        help="a Python module that registers handlers; may be given again",
    )
    parser.add_argument("--slots", type=_count(1, 4096), help="tasks at the same time")
    parser.add_argument("--name", help="the id of this worker (WORKER_ID)")


def niche(parser: argparse.ArgumentParser) -> None:
    """Add what `niche` takes."""
    parser.add_argument(
        "--markets", type=Path, metavar="FILE", help="JSON file with markets and geographies"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the results go")
    _timeout(parser)


def evolution(parser: argparse.ArgumentParser) -> None:
    """Add what `evolution` takes."""
    parser.add_argument("--population", type=_count(2, 100_000), default=24, metavar="N")
    parser.add_argument("--generations", type=_count(1, 100_000), default=10, metavar="N")
    parser.add_argument("--fitness", metavar="NAME", help="a built-in fitness function")
    parser.add_argument("--mutation-rate", type=_number(0, 1), default=0.2, metavar="0..1")
    parser.add_argument("--seed", type=int, help="the same seed gives the same start")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the results go")
    _timeout(parser)


def tasks(parser: argparse.ArgumentParser) -> None:
    """Add what `tasks` takes."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (text, ids) in TASK_ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        if ids:
            action.add_argument("ids", nargs=ids, metavar="ID")
        if name == "list":
            action.add_argument("--state", choices=TASK_STATES, default="", help="of this only")
            action.add_argument("--limit", type=_count(1, 1_000_000), default=50, metavar="N")
        if name == "replay":
            action.add_argument("--all-failed", action="store_true", help="all that have failed")
        if ids != "+":
            action.add_argument("--type", default="", help="of this task type only")
        action.add_argument("--json", action="store_true", help="one JSON object a line")


def status(parser: argparse.ArgumentParser) -> None:
    """Add what `status` takes."""
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def recover(parser: argparse.ArgumentParser) -> None:
    """Add what `recover` takes."""
    parser.add_argument("--data", metavar="DIR", help="the data folder (D8_DATA_DIR)")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def _timeout(parser: argparse.ArgumentParser) -> None:
    """Add the one option that bounds all waiting of a command."""
    parser.add_argument(
        "--timeout",
        dest="timeout_s",
        type=_number(0.1, 604_800),
        metavar="SECONDS",
        help="give up waiting after this time",
    )


def _count(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        with_bounds = f"expected a whole number, {low} to {high}, not {text!r}"
        if not text.isascii() or not text.isdigit() or not low <= int(text[:18]) <= high:
            raise argparse.ArgumentTypeError(with_bounds)
        return int(text)

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text if text.isascii() and "_" not in text else "nan")
        except ValueError:
            value = float("nan")
        if not low <= value <= high:  # also false for NaN
            with_bounds = f"expected a number, {low:g} to {high:g}, not {text!r}"
            raise argparse.ArgumentTypeError(with_bounds)
        return value

    return parse
