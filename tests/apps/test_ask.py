"""The command `ask` against a mesh with a stand-in Ollama, and without one."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from bench.mesh import mesh
from d8mesh.apps import ask as module
from d8mesh.apps.ask import await_model, data_of, question, run_with
from d8mesh.apps.demo import free_ports
from d8mesh.core.protocol.wish import INTERACTIVE_PRIORITY
from d8mesh.edge.network import host_name
from d8mesh.errors import BackendUnavailableError, ConfigError, WaitTimeoutError
from d8mesh.nodes.client import Client
from d8mesh.options import ask as add_arguments
from tests.ollama_standin import OllamaStandin
from tests.standin.faults import Kind

ANSWER = "Uno\u00a0dos\n\ttres 👩‍🔬 \x1b[31mrojo"


def options_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture(scope="module")
def ollama() -> Iterator[OllamaStandin]:
    with OllamaStandin(answer=lambda messages: ANSWER) as server:
        yield server


@pytest.fixture(scope="module")
def client(ollama: OllamaStandin) -> Iterator[Client]:
    with mesh(workers=0) as running:
        settings = {
            "DEEPSEEK_BASE_URL": ollama.url,
            "WORKER_ID": "anna",
            "WORKER_STATUS_PORT": str(free_ports(1)[0]),
        }
        running.workers.append(running.children.start("w", "worker", settings=settings))
        running.await_workers(1)
        with running.client() as connected:
            await_model(connected, None)
            yield connected


def test_the_answer_goes_out_and_who_gave_it_is_said_beside(
    client: Client, ollama: OllamaStandin, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of("Hola", "--system", "Sé breve")
    assert run_with(client, "Hola", options, None) == 0
    told = capsys.readouterr()
    assert told.out == ANSWER.replace("\x1b", "\\x1b") + "\n"
    assert told.err.splitlines()[-1].startswith(f"(qwen2.5:3b on {host_name()}, ")
    assert [m["content"] for m in ollama.chats[-1]["messages"]] == ["Sé breve", "Hola"]


def test_who_waits_at_a_screen_goes_before_a_batch(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    run_with(client, "Hola", options_of("--json"), None)
    task_id = json.loads(capsys.readouterr().out)["task_id"]
    assert client.ask("status", {"id": task_id})["priority"] == INTERACTIVE_PRIORITY


def test_a_question_says_which_models_will_do_and_where_it_may_go() -> None:
    options = options_of("--models", "big, m:latest", "--cloud", "overflow", "x")
    assert data_of("Hola", options) == {
        "messages": [{"role": "user", "content": "Hola"}],
        "models": ["big", "m:latest"],
        "cloud": "overflow",
    }
    for wrong in (("--cloud", "maybe"), ("--models", ","), ("--models", "a", "--model", "b")):
        with pytest.raises(SystemExit):
            options_of(*wrong)


def test_the_model_is_as_wished_or_that_is_said(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    run_with(client, "Hola", options_of("--model", "qwen2.5:3b"), None)
    assert f"(qwen2.5:3b on {host_name()}" in capsys.readouterr().err
    run_with(client, "Hola", options_of("--model", "llama9"), None)
    assert "no machine could answer with llama9 now: another model did" in capsys.readouterr().err
    run_with(client, "Hola", options_of("--model", "qwen2.5"), None)
    assert "no service has qwen2.5; did you mean qwen2.5:3b?" in capsys.readouterr().err
    run_with(client, "Hola", options_of("--model", "library/Qwen2.5:3B"), None)
    said = capsys.readouterr().err
    assert f"(qwen2.5:3b on {host_name()}" in said
    assert "another model" not in said


def test_json_is_the_whole_result(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(client, "Hola", options_of("--json"), None) == 0
    (line,) = capsys.readouterr().out.splitlines()
    body = json.loads(line)
    assert (body["output"], body["worker_id"]) == (ANSWER, "anna")
    assert body["model"] in ("deepseek-r1:8b", "qwen2.5:3b")  # both may be in memory by now


def test_an_answer_that_does_not_come_in_time_goes_on(
    client: Client, ollama: OllamaStandin, capsys: pytest.CaptureFixture[str]
) -> None:
    ollama.fault(Kind.SILENT)
    try:
        with pytest.raises(WaitTimeoutError, match=r"no whole answer within 0\.5 s"):
            run_with(client, "Hola", options_of("--timeout", "0.5"), 0.0)
        err = capsys.readouterr().err
        assert "goes on without you" in err
        assert client.task(err.split()[1]).cancel()
    finally:
        ollama.mend()


def test_silence_is_told_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    answer = module._PrintedAnswer(is_quiet=False)
    answer.piece("one")
    answer.silent("nobody is there")
    answer.silent("still nobody")
    answer.piece(" two")
    answer.whole("one two three")
    told = capsys.readouterr()
    assert told.out == "one\n two three\n"
    assert told.err == "still waiting: nobody is there\nstill waiting: still nobody\n"


class WithoutModel:
    """A client of a mesh whose workers have no language model."""

    def __init__(self, *workers: dict[str, Any]) -> None:
        self.workers = list(workers)
        self.asked = 0

    def ask(self, what: str, args: object, /) -> dict[str, Any]:
        self.asked += 1
        return {"workers": self.workers}

    def submit(self, kind: str, data: object, /, **options: object) -> Any:
        raise AssertionError("nothing may be submitted that nobody can do")


def test_without_a_model_it_says_who_is_there_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NO_WORKER_S", 0.1)
    monkeypatch.setattr(module, "WORKERS_LOOK_S", 0.02)
    reason = "Ollama has no models"
    client = WithoutModel({"worker_id": "bob", "status": "online", "reason": reason})
    told: list[str] = []
    monkeypatch.setattr(module, "tell", told.append)
    with pytest.raises(BackendUnavailableError, match="no worker of the mesh has a language model"):
        await_model(client, None)
    assert told == [
        "no worker of the mesh has a language model now",
        "the workers that are there:",
        "  bob: Ollama has no models",
        "waiting 0 s for one to come",
    ]
    assert client.asked > 1


def test_a_worker_that_comes_meanwhile_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORKERS_LOOK_S", 0.01)
    client = WithoutModel()

    def tell(line: str) -> None:
        types = {"task_types": ["agent_action"]}
        client.workers = [{"worker_id": "a", "status": "online", "capabilities": types}]

    monkeypatch.setattr(module, "tell", tell)
    await_model(client, None)
    assert client.asked == 2


@pytest.mark.parametrize(
    ("words", "piped", "expected"),
    [
        (["Hello", "there"], "not looked at", "Hello there"),
        ([], "\ufeff piped\ntext \n", "piped\ntext"),
        (["-"], "piped", "piped"),
        (["Summarise", "-"], "a text", "Summarise\n\na text"),
    ],
)
def test_the_question_is_what_is_given_or_piped(
    monkeypatch: pytest.MonkeyPatch, words: list[str], piped: str, expected: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped.encode())))
    assert question(words) == expected


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfeh\x00"])
def test_no_question_is_told(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(ConfigError, match=r"there is no question|expected UTF-8"):
        question([])
