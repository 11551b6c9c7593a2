"""The command `bench`: runs scenarios, prints a table, keeps the figures as JSON."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from bench import throughput
from d8mesh import __version__
from d8mesh.config import Config

Rows = list[dict[str, object]]


def run(config: Config, options: argparse.Namespace) -> int:
    """Run the scenarios named on the command line."""
    del config
    arguments = _parser().parse_args(options.rest)
    report: dict[str, object] = {
        "d8mesh": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    for name in arguments.scenario or ["throughput"]:
        print(f"== {name}", flush=True)
        rows = SCENARIOS[name](arguments)
        _print(rows)
        report[name] = rows
    if arguments.json:
        text = json.dumps(report, indent=1, ensure_ascii=False)
        Path(arguments.json).write_text(text + "\n", "utf-8")
    return 0


def _throughput(arguments: argparse.Namespace) -> Rows:
    tasks, rounds = (20_000, 2) if arguments.quick else (100_000, 5)
    rows: Rows = []
    for workers in (1, 2):
        rates = throughput.measure(workers=workers, tasks=tasks, rounds=rounds)
        base = statistics.median(rates["raw loop"])
        for name, values in rates.items():
            middle = statistics.median(values)
            rows.append(
                {
                    "workers": workers,
                    "what": name,
                    "tasks/s": round(middle),
                    "min": round(min(values)),
                    "max": round(max(values)),
                    "over raw": round(middle / base, 2),
                }
            )
    return rows


SCENARIOS: dict[str, Callable[[argparse.Namespace], Rows]] = {"throughput": _throughput}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="start_d8.py bench", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, []], help="what to measure")
    parser.add_argument("--quick", action="store_true", help="fewer tasks and rounds")
    parser.add_argument("--json", metavar="FILE", help="keep the figures here")
    return parser


def _print(rows: Rows) -> None:
    if not rows:
        return
    heads = list(rows[0])
    widths = [max(len(head), *(len(str(row[head])) for row in rows)) for head in heads]
    header: dict[str, object] = {head: head for head in heads}
    for row in (header, *rows):
        cells = (str(row[head]).rjust(width) for head, width in zip(heads, widths, strict=True))
        print("  ".join(cells))
    sys.stdout.flush()
