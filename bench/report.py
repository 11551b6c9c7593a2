"""The page `docs/PERFORMANCE.md`, made wholly from the JSON of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.findings import Findings, Table, findings_of, middle
from bench.musts import MUSTS, Must

#: Headings of the scenarios on the page.
TITLES: Final = {
    "throughput": "Throughput",
    "latency": "Latency",
    "rest": "REST",
    "backlog": "Long queues",
    "workers": "Many workers",
    "recovery": "Recovery",
    "start": "Start and idling",
    "llm": "LLM requests on unequal machines",
    "doors": "Chats by the doors, beside other routers",
    "batches": "A batch of 50,000 lines",
    "curve": "What encryption costs",
    "sealed": "What encrypted payloads on the disk cost",
    "abuse": "Beside peers that mean no good",
    "fuzz": "Bad frames, requests and records by the million",
    "hot_path": "The hot path: where each microsecond of a task goes",
    "open_webui": "Open WebUI at the doors",
}

INTRODUCTION: Final = (
    "Made by `python3 start_d8.py bench report FILE.json` from the JSON of the run below, not by",
    "hand. Each figure is the median of the rounds, with the lowest and the highest in brackets.",
    "What is compared was measured in turn, round by round, in one run; a ratio is the median of",
    "the rounds' ratios. Absolute figures move by 20-30 % between runs.",
)

#: What no figure says: why a goal is not reached. By hand, below the table of bounds.
REMARKS: Final = Path(__file__).with_name("remarks.md")


def page(told: dict[str, Any], pictures: Sequence[str] = ()) -> str:
    """Return the whole page; `pictures` are paths of plots as seen from it."""
    found = {name: findings_of(each) for name, each in told["scenarios"].items()}
    lines = [
        "# Performance",
        "",
        *INTRODUCTION,
        "",
        *_about(told),
        "",
        "## What must hold",
        "",
        *_musts(found, told),
        *(line for path in pictures for line in ("", f"![{Path(path).stem}]({path})")),
    ]
    for name, findings in found.items():
        about = told["scenarios"][name]
        lines += ["", f"## {TITLES.get(name, name)}", ""]
        lines += [_made(name, about), "", *(f"* {note}" for note in findings.notes), ""]
        lines += tables_of(findings)
    failed = {n: why for n, why in told.get("failed", {}).items() if n not in found}
    lines += [f"{TITLES.get(name, name)} was not measured: {why}" for name, why in failed.items()]
    return "\n".join(lines).rstrip() + "\n"


def joined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return several runs as one: the first's machine, each scenario of the latest that has it.

    A scenario that was measured on another machine, or with other versions, says so itself.
    """
    whole = dict(runs[0])
    whole["scenarios"] = {}
    whole["failed"] = {name: why for run in runs for name, why in run.get("failed", {}).items()}
    for run in runs:
        own = {} if _place(run["machine"]) == _place(whole["machine"]) else {"on": run["machine"]}
        whole["scenarios"] |= {name: {**own, **each} for name, each in run["scenarios"].items()}
    whole["command"] = "`, `".join(run["command"] for run in runs)
    ordered = [name for name in TITLES if name in whole["scenarios"]]
    whole["scenarios"] = {name: whole["scenarios"][name] for name in ordered}
    return whole


def tables_of(found: Findings) -> list[str]:
    """Return the tables of a scenario as lines of Markdown."""
    lines: list[str] = []
    for table in found.tables:
        lines += [f"**{table.title}** ({table.unit})", "", *_table(table), ""]
    return lines


def number(value: float) -> str:
    """Return a figure with as many digits as mean something."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 or value == 0 else f"{value:.3g}"


def cell(samples: Sequence[float]) -> str:
    """Return the median, and the lowest and highest if there are several samples."""
    median = middle(samples)
    if median is None:
        return ""
    if len(samples) == 1:
        return number(median)
    return f"{number(median)} ({number(min(samples))}–{number(max(samples))})"


def _table(table: Table) -> list[str]:
    columns = table.columns
    lines = ["| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for row in table.rows:
        cells = (cell(table.samples(row, column)) for column in columns)
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines


def _about(told: dict[str, Any]) -> list[str]:
    machine = told["machine"]
    hardware, versions = _place(machine)
    return [
        "| | |",
        "| --- | --- |",
        f"| command | `{told['command']}` |",
        f"| date | {told['started_at']} |",
        f"| machine | {hardware} |",
        f"| system | {machine['system']}, {machine['file_system']} |",
        f"| disk | fsync of an append: {machine['fsync_p50_ms']:.2f} ms p50 |",
        f"| versions | {versions} |",
        f"| load average before | {machine['load_before']:.2f} |",
    ]


def _place(machine: dict[str, Any]) -> tuple[str, str]:
    """Return a machine in words, and the versions of what ran there."""
    memory_gb = machine["memory_bytes"] / 2**30
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['cpu']}, {machine['cores']} cores, {memory_gb:.0f} GB", versions


def _made(name: str, about: dict[str, Any]) -> str:
    """Return what made a scenario's figures, and when."""
    size = f" at {about['scale']:.0%} of the full size" if about["scale"] < 1 else ""
    place = f" on {' with '.join(_place(about['on']))}," if "on" in about else ""
    rounds = f"{about['rounds']} round{'s' if about['rounds'] > 1 else ''}"
    return (
        f"`python3 start_d8.py bench {name}`, {rounds}{size},{place} from "
        f"{about['started_at']}; took {about['seconds']:.0f} s, load average before: "
        f"{about['load_before']:.2f}, cores taken by others: {about['busy_before']:.0%}; "
        f"the host gave {about['stolen_s']:.0f} s of processor time to others meanwhile."
    )


def _musts(found: dict[str, Findings], told: dict[str, Any]) -> list[str]:
    lines = ["| | must | goal | seen | |", "| --- | --- | --- | --- | --- |"]
    for must in MUSTS:
        samples = _samples(found, must)
        median = middle(samples)
        if median is None:
            lines.append(f"| {must.text} | {must.must_text} | {must.goal_text} | not measured | |")
            continue
        seen = f"{cell(samples)} {must.unit}".rstrip()
        is_whole = told["scenarios"][must.scenario]["scale"] >= 1
        verdict = must.verdict(median) if is_whole else "(cut short: says nothing)"
        lines.append(f"| {must.text} | {must.must_text} | {must.goal_text} | {seen} | {verdict} |")
    return [*lines, "", *(REMARKS.read_text("utf-8").splitlines() if REMARKS.exists() else ())]


def _samples(found: dict[str, Findings], must: Must) -> list[float]:
    findings = found.get(must.scenario)
    if findings is None:
        return []
    table = next((each for each in findings.tables if each.title == must.table), None)
    if table is None:
        return []
    name = must.row.lower()  # peers may say more of themselves, as "Celery + Redis"
    row = next((row for row in table.rows if name in row.lower()), must.row)
    return table.samples(must.row, must.column) or table.samples(row, must.column)
