"""The models of the mesh, as people read them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

import pytest

from d8mesh import words
from d8mesh.apps.models import lines, run_with
from d8mesh.apps.tables import shown_width
from tests.apps.listed_models import model, overview, place, service


class Orchestrator:
    """Answers the one question."""

    def ask(self, what: str, args: Mapping[str, object], /) -> dict[str, Any]:
        assert (what, args) == ("models", {})
        return overview()


def shown(body: dict[str, Any], columns: int | None = None) -> str:
    return "\n".join(lines(body, columns))


def test_a_model_is_one_row_with_where_it_is() -> None:
    head, first, second, third, *_ = shown(overview()).splitlines()
    assert head.split() == [
        "model", "size", "loaded", "installed", "can", "tokens/s", "requests", "waiting",
    ]  # fmt: skip
    assert first.split("  ")[0] == "qwen2.5:3b"
    told = ("1.9 GB", "pi5  ", "pi5, nas (paused)", "tools", "11.7-48.2", "2/3", "4")
    assert all(each in first for each in told), first
    assert "274 MB" in second
    assert "groq (cloud)" in third


def test_aliases_pauses_and_budgets_are_said_below() -> None:
    told = shown(overview())
    assert "qwen2.5:3b is the same as chat:latest" in told
    assert (
        "qwen2.5:3b on nas is paused, tried again in 12 s: model requires more system memory"
        in told
    )
    assert "tasks that wait and ask for no model: 3" in told
    assert (
        "llama-3.3-70b at groq has left: 12 requests this minute; 4000 tokens this minute; "
        "900 requests today" in told
    )
    assert "attic (ollama): Ollama does not answer at http://attic:11434" in told


@pytest.mark.parametrize("columns", [60, 100])
@pytest.mark.parametrize("language", words.LANGUAGES)
def test_no_line_is_wider_than_the_terminal(columns: int, language: str) -> None:
    words.use(language)
    try:
        wide = [line for line in lines(overview(), columns) if shown_width(line) > columns]
    finally:
        words.use(words.ENGLISH)
    assert wide == []


def test_a_budget_that_is_used_up_says_for_how_long() -> None:
    left = {
        "minute_requests": 0, "minute_tokens": None, "day_requests": None, "day_tokens": 5,
        "blocked_s": 21.4, "blocked_why": "30 requests a minute",
    }  # fmt: skip
    body = overview() | {"models": [model("m", place("groq", "m", budget=left))]}
    assert (
        "m at groq has left: nothing for 21 s: 30 requests a minute; 0 requests this minute; "
        "5 tokens today" in shown(body)
    )
    free = dict.fromkeys(left, None) | {"blocked_s": 0.0}
    body = overview() | {"models": [model("m", place("groq", "m", budget=free))]}
    assert "m at groq has left: no bound is known" in shown(body)


def test_a_service_that_is_away_and_a_loading_model_are_marked() -> None:
    away = place("attic", "m", state="away")
    loading = place("pi5", "m", is_loading=True)
    body = overview() | {"models": [model("m", away, loading)]}
    assert "attic (away), pi5 (loading)" in shown(body)


def test_without_services_it_says_what_to_start() -> None:
    nothing = {"models": [], "services": [], "waiting_for_any": 0}
    assert "start a worker where Ollama is" in shown(nothing)
    empty = nothing | {"services": [service("pi5", models=[], default=None)]}
    assert "models pull NAME" in shown(empty)


def test_of_a_service_without_models_it_is_said_how_to_pull_one() -> None:
    empty = service("new", models=[], default=None)
    told = shown({"models": [], "services": [empty], "waiting_for_any": 0, "left_out": 0})
    assert "new (ollama) has no model yet: `" in told
    assert "models pull NAME --on new`" in told
    down = service("new", models=[], state="down", reason="it is off")
    told = shown({"models": [], "services": [down], "waiting_for_any": 0, "left_out": 0})
    assert "no model yet" not in told


def test_json_is_what_the_orchestrator_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(Orchestrator(), argparse.Namespace(json=True)) == 0
    assert json.loads(capsys.readouterr().out) == overview()
    assert run_with(Orchestrator(), argparse.Namespace(json=False)) == 0
    assert "qwen2.5:3b" in capsys.readouterr().out
