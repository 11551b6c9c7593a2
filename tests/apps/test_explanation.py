"""Why a task is where it is, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh import words
from d8mesh.apps.explanation import explanation_lines
from d8mesh.program import command_name

WAITS: dict[str, Any] = {
    "task_id": "0123456789abcdef-3",
    "type": "agent_action",
    "state": "queued",
    "summary": "the one service with the model 'm' is busy; 3 waiting before it",
    "waited_s": 12.0,
    "why": ["it has waited 12 s so far", "it asks for the model 'm' and takes no other"],
    "candidates": [
        {
            "service": "a", "machine": "pi5", "model": "m", "state": "full",
            "text": "busy with 2 of 2 slots", "estimate_s": 14.25,
        },
        {"worker": "w", "machine": "nas", "text": "away, last heard of 5 min ago"},
    ],
    "remedies": [
        {"text": "install m on nas", "command": "models pull m --on nas"},
        {"text": "start the service on attic", "command": None},
    ],
    "attempts": [],
}  # fmt: skip


def test_a_waiting_task_is_told_with_who_could_and_what_would() -> None:
    assert list(explanation_lines(WAITS)) == [
        "0123456789abcdef-3: queued",
        "  the one service with the model 'm' is busy; 3 waiting before it",
        "  it has waited 12 s so far",
        "  it asks for the model 'm' and takes no other",
        "  who could run it:",
        "    pi5, m: busy with 2 of 2 slots (about 14.2 s there)",
        "    worker w: away, last heard of 5 min ago",
        "  what would have it run:",
        "    install m on nas",
        f"      {command_name()} models pull m --on nas",
        "    start the service on attic",
    ]


def test_an_attempt_is_told_with_how_all_stood_then() -> None:
    stood = {"machine": "pi5", "model": "m", "text": "free, it could have the task now"}
    attempt = {"attempt": 1, "service": "a", "machine": "pi5", "model": "m", "candidates": [stood]}
    empty = {"why": [], "candidates": [], "remedies": [], "summary": "it completed"}
    told = list(explanation_lines(WAITS | empty | {"state": "completed", "attempts": [attempt]}))
    assert told[1:] == [
        "  it completed",
        "  attempt 1 went to pi5 with m; how all stood then:",
        "    pi5, m: free, it could have the task now",
    ]


def test_services_of_one_machine_are_told_apart() -> None:
    stood = {"machine": "pi5", "model": "m", "text": "busy with 1 of 1 slots"}
    both = [stood | {"service": "x:1"}, stood | {"service": "x:2"}]
    told = list(explanation_lines(WAITS | {"candidates": both}))
    assert "    pi5 (x:1), m: busy with 1 of 1 slots" in told
    assert "    pi5 (x:2), m: busy with 1 of 1 slots" in told


def test_it_is_told_in_spanish() -> None:
    words.use("es")
    try:
        told = list(explanation_lines(WAITS))
    finally:
        words.use("en")
    assert told[1] == "  el único servicio con el modelo 'm' está ocupado; 3 esperan antes"
    assert told[2] == "  espera desde hace 12 s"
    assert told[6] == "    worker w: ausente, se supo de él por última vez hace 5 min"


def test_what_comes_from_the_net_drives_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    evil = WAITS | {"why": ["\x1b[31m" * 3], "remedies": [{"text": "\x9b", "command": "\x1bx"}]}
    told = list(explanation_lines(evil))
    assert all(line.isprintable() for line in told)
    assert all(len(line) <= 60 for line in told)
