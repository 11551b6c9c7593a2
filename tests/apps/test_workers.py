"""The command `workers` on a real mesh and on none."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest

from bench.mesh import mesh
from d8mesh.apps.demo import free_ports
from d8mesh.apps.workers import run, say_who_is_there
from d8mesh.config import Config
from d8mesh.options import workers as add_arguments
from tests.end_to_end.processes import until


def options_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def test_each_worker_is_listed_with_what_it_can_and_why_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (nowhere,) = free_ports(1)
    with mesh(workers=0) as running:
        settings = {
            "DEEPSEEK_BASE_URL": f"http://127.0.0.1:{nowhere}",
        }
        running.workers.append(running.children.start("w", "worker", settings=settings))
        running.await_workers(1)
        config = replace(running.config, orchestrator_url=running.url)

        def reason() -> str:
            capsys.readouterr()
            assert run(config, options_of("--json")) == 0
            (line,) = capsys.readouterr().out.splitlines()
            body = json.loads(line)
            assert body["orchestrator"] == running.url
            assert body["capabilities"]["task_types"][0] == "echo"
            return str(body["reason"])

        until(lambda: "Ollama" in reason(), "the reason")
        assert run(config, options_of()) == 0
        shown = capsys.readouterr().out
        head, row, *why = shown.splitlines()
        assert head.split()[:4] == ["worker", "host", "type", "state"]
        assert "evolution_mutation" in row
        assert why[0].startswith("without a language model: ")
        assert str(nowhere) in why[0]


def test_without_an_orchestrator_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    (nowhere,) = free_ports(1)
    config = Config(mesh="nobody", interfaces=("127.0.0.1",), web_port=nowhere)
    assert run(config, options_of("--timeout", "0.5")) == 1
    assert "No orchestrator of mesh nobody answers." in capsys.readouterr().out
    assert run(config, options_of("--json")) == 1
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "error": "No orchestrator of mesh nobody answers.",
        "code": "broker.unavailable",
    }


def test_who_is_there_is_told_with_what_it_offers_or_lacks() -> None:
    assert next(iter(say_who_is_there([]))).startswith("there is no worker: start one with `")
    some = {"worker_id": "a", "status": "online", "capabilities": {"task_types": ["echo"]}}
    other = {"worker_id": "b", "status": "online", "reason": "no models"}
    assert list(say_who_is_there([some, other])) == [
        "the workers that are there:", "  a: it offers only echo", "  b: no models",
    ]  # fmt: skip
