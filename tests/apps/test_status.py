"""The status command, against a real mesh and against nothing."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import pytest

from bench.mesh import mesh
from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import Orchestrator, look
from d8mesh.apps.status import ENDED_SHOWN_S, counts, counts_text, lines, run
from d8mesh.config import Config
from d8mesh.options import status as add_arguments
from d8mesh.program import command_name
from tests.apps.listed_models import overview
from tests.http.certified import certified
from tests.http.served import served

NOW = 1_800_000_000.0


def options_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def test_a_mesh_is_found_by_mdns_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    with mesh(workers=1) as running:
        (other,) = free_ports(1)
        config = Config(mesh=running.config.mesh, interfaces=("127.0.0.1",), web_port=other)
        assert run(config, options_of("--json")) == 0
        told = json.loads(capsys.readouterr().out)
        (orchestrator,) = told["orchestrators"]
        assert orchestrator["url"] == running.url
        assert orchestrator["health"]["status"] == "healthy"
        assert [worker["status"] for worker in orchestrator["workers"]] == ["online"]
        assert run(config, options_of()) == 0
        shown = capsys.readouterr().out
        assert "healthy" in shown
        assert "0 pending" in shown
        another = Config(mesh="another", interfaces=("127.0.0.1",), web_port=other)
        assert look(another) == []
        named = dataclasses.replace(another, orchestrator_url=running.url)
        assert run(named, options_of()) == 1
        shown = " ".join(capsys.readouterr().out.split())
        assert f"{running.url} is of mesh '{config.mesh}', not 'another' (D8_MESH)" in shown


def test_without_an_orchestrator_it_says_how_to_start_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (nowhere,) = free_ports(1)
    config = Config(mesh="nobody", interfaces=("127.0.0.1",), web_port=nowhere)
    assert run(config, options_of()) == 1
    assert f"{command_name()} orchestrator" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_who_answers_and_cannot_be_asked_is_told_with_why(
    scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (nowhere,) = free_ports(1)
    with served(tls=certified()) as here:
        url = f"{scheme}://127.0.0.1:{here.port}"
        config = Config(
            mesh="tls", interfaces=("127.0.0.1",), web_port=nowhere, orchestrator_url=url
        )
        assert run(config, options_of()) == 1
        shown = capsys.readouterr().out
        assert run(config, options_of("--json")) == 1
        told = json.loads(capsys.readouterr().out)
    assert "orchestrator`" not in shown, "one runs: who starts another is sent the wrong way"
    assert "ORCHESTRATOR_URL" not in shown, "it is set"
    wanted = {
        "https": (f"set D8_TLS_TRUST={certified().fingerprint}", "tls.untrusted"),
        "http": (f"ask https://127.0.0.1:{here.port}", "http.plain"),
    }[scheme]
    assert wanted[0] in shown
    assert wanted[0] in told["error"]
    assert (told["orchestrators"], told["code"]) == ([], wanted[1])


def test_what_speaks_no_https_and_what_does_not_answer_are_told_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (nowhere,) = free_ports(1)
    quiet = Config(mesh="tls", interfaces=("127.0.0.1",), web_port=nowhere)
    with served() as plain:
        url = f"https://127.0.0.1:{plain.port}"
        assert run(dataclasses.replace(quiet, orchestrator_url=url), options_of("--json")) == 1
    told = json.loads(capsys.readouterr().out)
    assert (f"is it http://127.0.0.1:{plain.port}" in told["error"], told["code"]) == (
        True,
        "tls.none",
    )
    url = f"http://127.0.0.1:{nowhere}"
    assert run(dataclasses.replace(quiet, orchestrator_url=url), options_of("--json")) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["error"].startswith(f"{url} (ORCHESTRATOR_URL): ")
    assert told["code"] == "broker.unavailable"
    assert run(quiet, options_of("--json")) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["error"] == "No orchestrator of mesh tls answers."
    assert told["code"] == "broker.unavailable"


def worker(name: str, **more: object) -> dict[str, Any]:
    body = {"worker_id": name, "worker_type": "cpu", "status": "online", "slots": 2, "running": 0}
    capabilities = {"task_types": ["echo", "agent_action"], "models": ["m:1"]}
    return {**body, "tasks_completed": 1, "tasks_failed": 0, "capabilities": capabilities, **more}


def told(workers: list[dict[str, Any]], *, is_all: bool = False) -> list[str]:
    health = {"broker_id": "b", "status": "healthy"}
    tasks = {"total": 9, "pending": 1, "assigned": 1, "completed": 2, "failed": 2, "cancelled": 3}
    each = Orchestrator("http://10.0.0.1:7001", health, {"tasks": tasks}, workers)
    return list(lines(each, NOW, is_all=is_all))


def test_cancelled_tasks_are_counted_apart() -> None:
    text = "  tasks: 1 pending, 1 assigned, 2 completed, 2 failed, 3 cancelled"
    assert told([])[1] == text
    # An orchestrator may count them among the failed ones too.
    among = {"total": 9, "pending": 1, "assigned": 1, "completed": 2, "failed": 5, "cancelled": 3}
    assert counts({"tasks": among})["failed"] == 2
    older = {"total": 4, "pending": 0, "assigned": 1, "completed": 2, "failed": 1}
    assert counts({"tasks": older}) == {**{k: older[k] for k in older if k != "total"},
                                        "cancelled": 0}  # fmt: skip
    assert counts_text({}) == "tasks: unknown"


def test_services_are_told_in_short_with_what_they_have_loaded() -> None:
    health = {"broker_id": "b", "status": "healthy"}
    each = Orchestrator("http://10.0.0.1:7001", health, {}, [worker("w")], overview())
    shown = list(lines(each, NOW))
    at = next(n for n, line in enumerate(shown) if line.split()[:1] == ["machine"])
    assert [line.split() for line in shown[at : at + 5]] == [
        ["machine", "service", "state", "requests", "loaded"],
        ["pi5", "ollama", "online", "2", "qwen2.5:3b"],
        ["nas", "ollama", "online", "0", "-"],
        ["attic", "ollama", "down", "0", "-"],
        ["groq", "groq", "(cloud)", "online", "0", "-"],
    ]
    why = "Ollama does not answer at http://attic:11434"
    assert shown[at + 5].strip() == f"attic (ollama): {why}"
    each.workers = [worker("w", capabilities={"task_types": ["echo"]}, reason=why)]
    assert sum(why in line for line in lines(each, NOW)) == 1, "the worker says it already"


def test_slots_are_the_workers_own_and_requests_those_of_its_services() -> None:
    shown = told([worker("w", running=1, placed=6), worker("x")])
    head, first, second = (line.split() for line in shown[2:5])
    assert head[3:5] == ["slots", "requests"]
    assert first[3:5] == ["1/2", "6"]
    assert second[3:5] == ["0/2", "-"]


def test_workers_that_ended_fade_out() -> None:
    gone = [
        worker("fresh", status="offline", last_heartbeat=NOW - ENDED_SHOWN_S + 5),
        worker("old", status="offline", last_heartbeat=NOW - ENDED_SHOWN_S - 5),
        worker("older", status="offline", last_heartbeat=0),
        worker("live", last_heartbeat=0),
    ]
    shown = told(gone)
    assert [row.split()[0] for row in shown[3:5]] == ["fresh", "live"]
    assert shown[5] == "  and 2 that ended longer ago (--all shows them)"
    assert [row.split()[0] for row in told(gone, is_all=True)[3:]] == [
        "fresh", "live", "old", "older",
    ]  # fmt: skip


@pytest.mark.parametrize("columns", ["60", "40", "120"])
def test_no_line_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    many = {"task_types": ["echo"], "models": [f"a-long-model-name:{n}b" for n in range(4)]}
    reason = "Ollama does not answer at http://127.0.0.1:7100: start it there"
    rows = told([worker("raspberrypi-0a1b2c3d", capabilities=many, backend={"reason": reason})])
    assert max(map(len, rows)) <= int(columns), rows
    assert "a-long-model-name:0b" in " ".join(rows)
    assert "raspberrypi-0a1b2c3d" in " ".join(rows)


def test_what_workers_say_of_themselves_is_no_markup_and_drives_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evil = "[red]x[/red]\x1b[31m\x9b2J\u202e"
    rows = told([worker(evil, worker_type=evil, capabilities={"models": [evil]})])
    assert all(row.isprintable() for row in rows)
    assert any(r"[red]x[/red]\x1b[31m\x9b2J\u202e" in row for row in rows)
