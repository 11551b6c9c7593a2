"""Niches are asked of a language model, checked, kept, and asked for again when needed."""

from __future__ import annotations

import _thread
import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d8mesh.apps import work
from d8mesh.apps.answers import NICHE_SCHEMA
from d8mesh.apps.findings import load
from d8mesh.apps.niche import MAX_ASKS, question_of, run, run_with
from d8mesh.apps.niche_plan import NichePlan
from d8mesh.backends.embedded import EmbeddedBackend
from d8mesh.backends.ollama import OllamaBackend
from d8mesh.config import Config
from d8mesh.errors import ConfigError, D8Error
from d8mesh.handlers.llm import llm_handlers
from d8mesh.options import niche as add_arguments
from tests.in_process import InProcess
from tests.ollama_server import OllamaServer, default_answer
from tests.real_model import MODEL, needs_model

PLAN = NichePlan(markets=["pets", "books"], geographies=["Spain", "Peru"])


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as running:
        yield running


def options_of(**given: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args([])) | given)


def run_on(server: OllamaServer, folder: Path, *, plan: NichePlan = PLAN, **more: Any) -> int:
    options = options_of(output=folder, **more)
    with InProcess(llm_handlers(OllamaBackend(server.url))) as mesh:
        return run_with(mesh, plan, config=Config(lang="es"), options=options)


@needs_model
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("markets", "geographies"),
    [
        (["pet care"], ["Spain"]),
        pytest.param(["pets", "repair"], ["Spain", "Mexico", "Peru"], marks=pytest.mark.slow),
    ],
)
def test_every_answer_of_a_small_model_is_valid(
    markets: list[str], geographies: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = EmbeddedBackend(None)
    plan = NichePlan(markets=markets, geographies=geographies)
    try:
        with InProcess(llm_handlers(backend)) as mesh:
            done = run_with(mesh, plan, config=Config(), options=options_of(output=tmp_path))
    finally:
        backend.close()
    assert done == 0
    count = len(plan.pairs)
    told = f"{count} pairs: {count} found, 0 unusable, 0 unanswered"
    assert told in capsys.readouterr().out
    assert told in (tmp_path / "niches.html").read_text("utf-8")
    assert {each.model for each in load(tmp_path).all()} == {MODEL}


def first_question(messages: list[dict[str, Any]]) -> str:
    return str(messages[1]["content"])


def test_every_market_in_every_geography_is_asked_and_saved(
    server: OllamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_on(server, tmp_path) == 0
    findings = load(tmp_path)
    assert [(each.market, each.geography) for each in findings.all() if each.is_found]
    assert len(findings.ranking()) == 4
    assert all(findings.is_found(pair) for pair in PLAN.pairs)
    questions = [first_question(body["messages"]) for body in server.chats]
    assert len(questions) == 4
    assert any("pets" in text and "Peru" in text for text in questions)
    assert all("in Spanish" in text for text in questions)
    assert "Repair cafés" in (tmp_path / "niches.md").read_text("utf-8")
    assert "Repair cafés" in (tmp_path / "niches.csv").read_text("utf-8")
    said = capsys.readouterr()
    assert "4 pairs: 4 found, 0 unusable" in said.out
    head, *rows = said.out.splitlines()[:5]
    columns = ["opportunity", "demand", "growth", "feasibility", "competition"]
    assert head.split()[:5] == columns
    assert [row.split()[:5] for row in rows] == [["70.0", "70", "60", "80", "30"]] * 4
    assert str(tmp_path) in said.out
    assert "4/4" in said.err


def test_no_more_questions_are_under_way_than_was_said(
    server: OllamaServer, tmp_path: Path
) -> None:
    class Counted(InProcess):
        """Counts the tasks that have not ended."""

        most = 0

        def submit_many(self, *args: Any, **more: Any) -> Any:
            given = super().submit_many(*args, **more)
            under_way.extend(given)
            now = sum(not task._future.done() for task in under_way)
            self.most = max(self.most, now)
            return given

    under_way: list[Any] = []
    mesh = Counted(llm_handlers(OllamaBackend(server.url)), threads=4)
    with mesh:
        options = options_of(output=tmp_path, at_once=2)
        assert run_with(mesh, PLAN, config=Config(), options=options) == 0
    assert len(under_way) == 4
    assert mesh.most <= 2
    assert "4 found" in (tmp_path / "niches.html").read_text("utf-8")


def test_what_is_asked_says_which_form_the_answer_must_have(
    server: OllamaServer, tmp_path: Path
) -> None:
    assert run_on(server, tmp_path) == 0
    assert all(body["format"] == NICHE_SCHEMA for body in server.chats)


def test_a_bad_answer_is_asked_for_again_with_what_is_wrong(
    server: OllamaServer, tmp_path: Path
) -> None:
    server.answer = lambda messages: (
        default_answer(messages[:2]) if len(messages) > 2 else "I think that pets are nice."
    )
    assert run_on(server, tmp_path) == 0
    assert len(server.chats) == 8
    assert all(load(tmp_path).is_found(pair) for pair in PLAN.pairs)
    again = server.chats[-1]["messages"]
    assert again[2] == {"role": "assistant", "content": "I think that pets are nice."}
    assert "no JSON object" in again[3]["content"]


def test_a_question_stays_small_however_often_and_badly_it_is_answered() -> None:
    asked = question_of(("pets", "Spain"), None)
    for _ in range(MAX_ASKS - 1):
        asked = asked.again("🐶" * 100_000, "there is no JSON object in it")
    assert asked.number == MAX_ASKS
    assert len(asked.messages) == 4
    assert len(str(asked.messages).encode()) < 3000


def test_what_stays_bad_is_listed_as_unusable(
    server: OllamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda messages: (
        default_answer(messages[:2]) if "books" in first_question(messages) else "no"
    )
    assert run_on(server, tmp_path, json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["found"], report["unusable"], report["unanswered"]) == (2, 2, 0)
    assert "no JSON object" in (tmp_path / "niches.md").read_text("utf-8")
    assert len(server.chats) == 2 + 2 * MAX_ASKS


def test_an_answer_without_a_text_is_asked_for_again_and_then_unusable(tmp_path: Path) -> None:
    roles: list[list[str]] = []

    def silent(data: Any, context: Any) -> dict[str, Any]:
        roles.append([each["role"] for each in data["messages"]])
        return {"success": True, "output": "", "model": "mute:1b"}

    options = options_of(output=tmp_path)
    with InProcess({"agent_action": silent}) as mesh:
        assert run_with(mesh, PLAN, config=Config(), options=options) == 1
    assert {each.error for each in load(tmp_path).all()} == {"the answer has no text"}
    assert len(roles) == 4 * MAX_ASKS
    assert ["system", "user", "user"] in roles


def test_nothing_usable_is_a_failure(server: OllamaServer, tmp_path: Path) -> None:
    server.answer = lambda messages: "no"
    assert run_on(server, tmp_path) == 1


def test_a_task_that_fails_is_unusable_and_not_asked_again(
    server: OllamaServer, tmp_path: Path
) -> None:
    server.behaviour = "error"
    assert run_on(server, tmp_path) == 1
    assert len(server.chats) == 4
    assert "the model runner has stopped" in load(tmp_path).all()[0].error


def test_a_rerun_asks_only_for_what_is_missing(
    server: OllamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_on(server, tmp_path, plan=NichePlan(markets=["pets"], geographies=["Spain"])) == 0
    assert run_on(server, tmp_path) == 0
    assert len(server.chats) == 4
    assert "1 pairs were found before" in capsys.readouterr().err
    assert run_on(server, tmp_path) == 0
    assert len(server.chats) == 4


def test_a_result_of_something_else_is_not_overwritten(
    server: OllamaServer, tmp_path: Path
) -> None:
    (tmp_path / "niches.json").write_text('{"mine": true}', "utf-8")
    with pytest.raises(D8Error, match="choose another --output"):
        run_on(server, tmp_path)
    assert (tmp_path / "niches.json").read_text("utf-8") == '{"mine": true}'
    assert server.chats == []


def test_ctrl_c_saves_what_there_is_and_says_where(
    server: OllamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(messages: list[dict[str, Any]]) -> str:
        if "books" in first_question(messages):
            server.behaviour = "stall"
            _thread.interrupt_main()
        return default_answer(messages)

    server.answer = answer
    options = options_of(output=tmp_path)
    handlers = llm_handlers(OllamaBackend(server.url))
    with InProcess(handlers, threads=1) as mesh:
        assert run_with(mesh, PLAN, config=Config(), options=options) == 130
    assert load(tmp_path).is_found(("pets", "Spain"))
    assert not load(tmp_path).is_found(("books", "Peru"))
    assert f"to go on: the same command with --output {tmp_path}" in capsys.readouterr().out


def test_a_mesh_without_language_models_says_so_and_keeps_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "SILENCE_S", 0.1)
    options, until = options_of(output=tmp_path, timeout_s=1.0), time.monotonic() + 1.0
    with InProcess({}) as mesh:
        assert run_with(mesh, PLAN, config=Config(), options=options, until=until) == 1
    said = capsys.readouterr()
    assert "no worker in the mesh runs agent_action" in said.err
    assert "--timeout SECONDS was 1 s" in said.err
    assert "4 unanswered" in said.out


def test_a_mesh_in_which_no_worker_can_answer_is_not_waited_for_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "SILENCE_S", 0.1)
    monkeypatch.setattr(work, "NOBODY_S", 0.5)
    with InProcess({}) as mesh:
        options = options_of(output=tmp_path)
        assert run_with(mesh, PLAN, config=Config(), options=options) == 1
    said = capsys.readouterr()
    assert "given up: 4 of 4 tasks wait for" in said.err
    assert "no worker in the mesh runs agent_action. --timeout SECONDS waits longer" in said.err


def test_the_results_go_to_a_folder_of_the_data_folder(
    server: OllamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = llm_handlers(OllamaBackend(server.url))
    options = options_of(json=True)
    with InProcess(handlers) as mesh:
        run_with(mesh, PLAN, config=Config(data_dir=str(tmp_path)), options=options)
    folder = Path(json.loads(capsys.readouterr().out)["folder"])
    assert folder.parent == tmp_path / "niche"
    assert (folder / "niches.json").exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.json: cannot be read"):
        run(Config(), options_of(markets=tmp_path / "nothing.json"))
