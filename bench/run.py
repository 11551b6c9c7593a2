"""The command `bench`: runs scenarios, prints their figures, keeps everything as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.findings import Findings
from bench.plan import Plan
from bench.progress import say
from d8mesh.config import Config
from d8mesh.errors import ConfigError, D8Error

#: Of the file that is kept: raised when something in it changes its meaning.
SCHEMA: Final = 1
#: The scenarios in the order of running, and what each is about.
SCENARIOS: Final = {
    "throughput": "tasks per second, durable, beside the raw loops (and others: --peers)",
    "latency": "one in flight, open loop at 10/50/90 % of the peak, beside saturated REST",
    "rest": "submits, status polls, long polls, polling workers at 1/32/256 connections",
    "backlog": "cost and memory per task from 1,000 to 10,000,000 queued",
    "workers": "broker CPU per task with 1 to 2,000 workers",
    "recovery": "kill -9 with 100,000 and 1,000,000 queued, until the first task is done",
    "start": "cold start to first task, idle memory and idle CPU of each node",
    "llm": "LLM requests on unequal machines, over the best possible schedule",
    "doors": "chats by the doors: first token, 64 at once, 200 streams, 2,000 waiting (--peers)",
    "batches": "50,000 lines and 200 MB by /v1/batches: lines per second, memory",
    "curve": "what encryption costs: tasks per second and one in flight, over in clear",
    "sealed": "what D8_ENCRYPT=1 costs: the journal alone, sealing alone, the whole mesh",
    "abuse": "a healthy client beside 300 dribbling connections and 50 peers that never read",
    "hot_path": "where each microsecond of a task goes",
    "fuzz": "20 million bad frames, 200,000 bad requests: nothing crashes, hangs or grows (named)",
    "open_webui": "Open WebUI at the doors, in a headless browser (4.3 GB; only if it is named)",
}
#: Those that run only when they are named.
ON_DEMAND: Final = frozenset({"fuzz", "open_webui"})
#: The issue's names for two of them.
ALIASES: Final = {"queue": "backlog", "profile": "hot_path"}
FULL_ROUNDS: Final = 5
QUICK_ROUNDS: Final = 2
QUICK_SCALE: Final = 0.05
PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "PERFORMANCE.md"


def run(config: Config, options: argparse.Namespace) -> int:
    """Run the scenarios named on the command line, or write the page of an earlier run."""
    del config
    rest = list(options.rest)
    if rest[:1] == ["report"]:
        return _report(rest[1:])
    arguments = _parser().parse_args(rest)
    signal.signal(signal.SIGTERM, _leave)
    plan = Plan(
        rounds=arguments.rounds or (QUICK_ROUNDS if arguments.quick else FULL_ROUNDS),
        scale=QUICK_SCALE if arguments.quick else 1.0,
        with_peers=arguments.peers,
    )
    names = list(dict.fromkeys(ALIASES.get(name, name) for name in arguments.scenario))
    told = measure(
        names or [each for each in SCENARIOS if each not in ON_DEMAND], plan, rest, arguments.json
    )
    if arguments.plot:
        from bench import plots

        plots.draw(told, arguments.plot)
    return 1 if told["failed"] else 0


def measure(
    names: Sequence[str], plan: Plan, arguments: Sequence[str], file: Path | None
) -> dict[str, Any]:
    """Run scenarios one after another; keep the file up to date after each of them."""
    from bench import machine, report  # what they need is not installed to read the help

    told: dict[str, Any] = {
        "schema": SCHEMA,
        # files by their names: where they lie is nobody's concern
        "command": " ".join(["python3 start_d8.py bench", *(Path(a).name for a in arguments)]),
        "started_at": _now(),
        "rounds": plan.rounds,
        "scale": plan.scale,
        "machine": machine.describe(),
        "scenarios": {},
        "failed": {},
    }
    for name in names:
        say(f"== {name}: {SCENARIOS[name]}")
        load, others, at = machine.load(), machine.busy(), _now()
        begun, stolen_s = time.monotonic(), machine.stolen_s()
        try:
            found: Findings = importlib.import_module(f"bench.{name}").measure(plan)
        except Exception as error:  # whatever it is: the other scenarios are no less true
            why = str(error) if isinstance(error, D8Error) else repr(error)
            say(f"{name} failed: {why}")
            told["failed"][name] = why
        else:
            told["scenarios"][name] = {
                "started_at": at,
                "rounds": plan.rounds,
                "scale": plan.scale,
                "load_before": load,
                "busy_before": others,
                "seconds": time.monotonic() - begun,
                "stolen_s": machine.stolen_s() - stolen_s,
                **found.as_json(),
            }
            print("\n".join(report.tables_of(found)), flush=True)
        if file is not None:
            text = json.dumps(told, indent=1, ensure_ascii=False)
            file.write_text(text + "\n", "utf-8")
    return told


def _leave(number: int, _: object) -> None:
    """End by an exception, so that every node that was started is ended."""
    raise SystemExit(128 + number)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _report(rest: Sequence[str]) -> int:
    from bench import report

    parser = argparse.ArgumentParser(prog="start_d8.py bench report")
    parser.add_argument("file", type=Path, nargs="+", help="JSON of one run, or of several parts")
    parser.add_argument("--to", type=Path, default=PAGE, help="the page to write")
    parser.add_argument(
        "--plot", type=Path, metavar="DIR", help="draw the plots too, and show them on the page"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the parts as one file")
    arguments = parser.parse_args(rest)
    told = report.joined([_read(file) for file in arguments.file])
    if arguments.json:
        arguments.json.write_text(json.dumps(told, ensure_ascii=False) + "\n", "utf-8")
    pictures: list[str] = []
    if arguments.plot:
        from bench import plots

        home = arguments.to.resolve().parent
        for file in plots.draw(told, arguments.plot.resolve()):
            relative = file.relative_to(home) if file.is_relative_to(home) else file
            pictures.append(relative.as_posix())
    arguments.to.write_text(report.page(told, pictures), "utf-8")
    print(f"wrote {arguments.to}")
    return 0


def _read(file: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as the JSON of a bench: {error}") from error
    if told.get("schema") != SCHEMA:
        raise ConfigError(
            f"{file} has schema {told.get('schema')!r}, this bench writes {SCHEMA}: measure again"
        )
    return told


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:12}{text}" for name, text in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="start_d8.py bench",
        description=f"Scenarios (all, if none is named):\n{lines}",
        epilog="`start_d8.py bench report FILE.json` writes docs/PERFORMANCE.md from a kept run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    choices = [*SCENARIOS, *ALIASES]
    parser.add_argument(
        "scenario", nargs="*", type=_one_of(choices), metavar="SCENARIO", help="what to measure"
    )
    parser.add_argument(
        "--peers", action="store_true", help="measure others beside (installs them)"
    )
    parser.add_argument("--quick", action="store_true", help="few tasks and rounds: does it run?")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"rounds ({FULL_ROUNDS})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep everything here")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw plots (needs matplotlib)")
    return parser


def _one_of(names: Sequence[str]) -> Any:
    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return parse
