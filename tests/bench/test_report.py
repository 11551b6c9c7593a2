"""The page and the plots come from the JSON of a run and from nothing else."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from bench import (
    backlog,
    batches,
    doors,
    latency,
    machine,
    open_webui,
    report,
    rest,
    run,
    throughput,
    workers,
)
from bench.findings import Findings
from bench.musts import MUSTS
from d8mesh.config import Config
from d8mesh.errors import ConfigError

MACHINE: dict[str, Any] = {
    "cpu": "Test CPU",
    "cores": 2,
    "memory_bytes": 8 * 2**30,
    "system": "Linux",
    "file_system": "ext4",
    "fsync_p50_ms": 0.25,
    "load_before": 0.1,
    "versions": {"d8mesh": "0", "Python": "3.11"},
}
ABOUT = {
    "started_at": "2026-01-01T00:00:00+00:00",
    "rounds": 3,
    "scale": 1.0,
    "load_before": 0.2,
    "busy_before": 0.01,
    "seconds": 1.0,
    "stolen_s": 0.1,
}


def told(**scenarios: Findings) -> dict[str, Any]:
    return {
        "schema": run.SCHEMA,
        "command": "python3 start_d8.py bench",
        "started_at": "2026-01-01T00:00:00+00:00",
        "rounds": 3,
        "scale": 1.0,
        "machine": MACHINE,
        "scenarios": {name: {**ABOUT, **found.as_json()} for name, found in scenarios.items()},
    }


def throughput_at(ratio: float) -> Findings:
    found = Findings()
    for sample in (ratio - 0.1, ratio, ratio + 0.1):
        found.table(throughput.OVER_RAW, "×").add(throughput.MANY, "64 B, 2 workers", sample)
        found.table(throughput.RATES, "tasks/s").add(
            throughput.MANY, "64 B, 2 workers", 50_000 * sample
        )
    return found


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, "**missed**"), (1.5, "holds"), (2.5, "goal")])
def test_the_page_says_which_bounds_hold(ratio: float, verdict: str) -> None:
    line = next(
        line
        for line in report.page(told(throughput=throughput_at(ratio))).splitlines()
        if line.startswith("| no-op tasks/s")
    )
    assert f"{ratio:.2f} ({ratio - 0.1:.2f}–{ratio + 0.1:.2f}) ×" in line
    assert line.endswith(f"| {verdict} |")


def test_what_was_not_measured_is_said_to_be_missing() -> None:
    page = report.page(told(throughput=throughput_at(2.0)))
    assert page.count("not measured") == len(MUSTS) - 1
    assert "Test CPU, 2 cores, 8 GB" in page
    assert "| d8mesh submit_many (durable) | 100,000 (95,000–105,000) |" in page


def test_every_bound_names_a_scenario() -> None:
    assert {must.scenario for must in MUSTS} <= set(run.SCENARIOS)
    assert set(report.TITLES) == set(run.SCENARIOS)
    for must in MUSTS:
        assert (must.goal >= must.must) is must.is_more_better, must.text


def test_runs_in_parts_are_joined_the_later_scenario_wins() -> None:
    first, second = told(throughput=throughput_at(1.0)), told(throughput=throughput_at(2.0))
    second["scenarios"]["start"] = {**ABOUT, **Findings().as_json()}
    whole = report.joined([first, second])
    assert list(whole["scenarios"]) == ["throughput", "start"]
    assert whole["scenarios"]["throughput"] == second["scenarios"]["throughput"]


def test_a_scenario_of_another_machine_says_where_it_was_measured() -> None:
    first, second = told(throughput=throughput_at(1.0)), told(rest=throughput_at(2.0))
    alike = report.page(report.joined([first, second]))
    assert "`python3 start_d8.py bench rest`, 3 rounds, from" in alike
    second["machine"] = MACHINE | {"cpu": "Other CPU"}
    whole = report.joined([first, second])
    page = report.page(report.joined([whole]))  # kept as one file, and read again
    assert "bench rest`, 3 rounds, on Other CPU, 2 cores, 8 GB with d8mesh 0, Python 3.11," in page
    assert "bench throughput`, 3 rounds, from" in page
    assert "| machine | Test CPU, 2 cores, 8 GB |" in page


def test_what_is_measured_at_the_doors_has_sections_of_its_own() -> None:
    peak = Findings()
    for process, megabytes in (("broker", 62.0), ("web", 310.0)):
        peak.table(batches.MEMORY, "MB").add(process, "peak", megabytes)
    seen, added = Findings(), Findings()
    seen.table(open_webui.SEEN, "").add("models listed", "count", 3)
    added.table(doors.ADDED, "ms").add(doors.OLLAMA_DOOR, "p50", 1.5)
    first, second = told(throughput=throughput_at(2.0)), told(batches=peak, doors=added)
    page = report.page(report.joined([first, second, told(open_webui=seen)]))
    for name in ("doors", "batches", "open_webui"):
        assert f"\n## {report.TITLES[name]}\n" in page
    assert "| ≤ 300 MB | ≤ 100 MB | 62.0 MB | goal |" in page
    assert "| ≤ 300 MB | ≤ 100 MB | 310 MB | **missed** |" in page
    assert (
        "| time to first token that the Ollama door adds, p50 | ≤ 3 ms | ≤ 2 ms | 1.50 ms |" in page
    )


def test_a_scenario_that_failed_is_told_with_its_reason() -> None:
    run = told(throughput=throughput_at(1.0)) | {"failed": {"rest": "no port"}}
    assert "REST was not measured: no port" in report.page(report.joined([run]))
    later = told(rest=throughput_at(1.0))
    assert "was not measured: no port" not in report.page(report.joined([run, later]))


def test_the_page_shows_the_plots() -> None:
    page = report.page(told(throughput=throughput_at(2.0)), ["plots/throughput.png"])
    assert "\n![throughput](plots/throughput.png)\n" in page


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    kept, page = tmp_path / "run.json", tmp_path / "page.md"
    kept.write_text(json.dumps(told(throughput=throughput_at(2.0))), "utf-8")
    whole = tmp_path / "whole.json"
    rest = ["report", str(kept), "--to", str(page), "--json", str(whole)]
    options = argparse.Namespace(rest=rest)
    assert run.run(Config(), options) == 0
    assert page.read_text("utf-8") == report.page(told(throughput=throughput_at(2.0)))
    again = argparse.Namespace(rest=["report", str(whole), "--to", str(page)])
    assert run.run(Config(), again) == 0
    assert page.read_text("utf-8") == report.page(told(throughput=throughput_at(2.0)))


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "cannot be read"), ('{"schema": 0}', "this bench writes 1")]
)
def test_a_file_that_is_no_run_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    kept = tmp_path / "run.json"
    kept.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=reason):
        run.run(Config(), argparse.Namespace(rest=["report", str(kept)]))


def test_an_unknown_scenario_is_bad_usage() -> None:
    with pytest.raises(SystemExit):
        run.run(Config(), argparse.Namespace(rest=["speed"]))


def test_numbers_have_the_digits_that_mean_something() -> None:
    numbers = {123456.7: "123,457", 12.34: "12.3", 1.234: "1.23", 0.0123: "0.0123", 0.0: "0.00"}
    assert {value: report.number(value) for value in numbers} == numbers


def test_the_machine_is_described() -> None:
    about = machine.describe()
    assert set(about) == set(MACHINE)
    assert about["fsync_p50_ms"] > 0
    assert {"d8mesh", "Python", "pyzmq", "libzmq", "SQLite", "msgspec"} <= set(about["versions"])


def test_plots_are_drawn_of_what_is_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench import plots

    waiting, many, calls, times = Findings(), Findings(), Findings(), Findings()
    for place in (1, 2):
        number = 10**place
        waiting.table(backlog.COSTS, "µs").add(backlog.CPU, backlog.column(number), 10.0)
        waiting.table(backlog.MEMORY, "MB").add(backlog.RSS, backlog.column(number), 40.0)
        many.table(workers.COSTS, "µs").add(workers.OURS, workers.column(number), 20.0)
        calls.table(rest.RATES, "per second").add(rest.SUBMITS, rest.column(number), 900.0)
        times.series[f"{latency.ONE} / {latency.OURS}"] = [0.5, 0.7, 2.0]
    run_told = told(
        throughput=throughput_at(2.0), backlog=waiting, workers=many, rest=calls, latency=times
    )
    files = plots.draw(run_told, tmp_path / "plots")
    assert {file.stem for file in files} == {
        *("throughput", "latency_one_in_flight", "queue_cost", "queue_memory", "workers", "rest"),
    }
    assert all(file.stat().st_size > 10_000 for file in files)
