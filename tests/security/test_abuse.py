"""The mesh that is abused counts exactly, and sees when its neighbour suffers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.abuse import Abused, abused_mesh, failures_in


@pytest.fixture(scope="module")
def abused() -> Iterator[Abused]:
    with abused_mesh() as made:
        yield made


def test_one_refusal_is_counted_once(abused: Abused) -> None:
    with abused.refused("rest", "http.not_found"):
        assert abused.http.ask("GET", "/api/nowhere").status == 404


def test_a_second_refusal_that_nobody_expected_is_noticed(abused: Abused) -> None:
    def refuse_two() -> None:
        with abused.refused("rest", "http.not_found"):
            abused.http.ask("GET", "/api/nowhere")
            abused.http.ask("PATCH", "/health")

    with pytest.raises(AssertionError):
        refuse_two()


def test_a_task_that_came_of_a_refusal_is_noticed(abused: Abused) -> None:
    def submit() -> None:
        with abused.refused_as({}):
            abused.http.post("/api/tasks/submit", {"type": "echo", "data": {}})

    tasks = abused.tasks()
    with pytest.raises(AssertionError):
        submit()
    assert len(abused.tasks() - tasks) == 1


def test_a_neighbour_that_stands_still_is_noticed(
    abused: Abused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.security.abuse.PATIENCE_S", 1.0)
    (worker,) = abused.mesh.workers
    os.kill(worker.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(AssertionError, match="stands still"):
            abused.goes_on()
    finally:
        os.kill(worker.process.pid, signal.SIGCONT)


def test_a_traceback_in_a_log_is_found(tmp_path: Path) -> None:
    (tmp_path / "web.log").write_text("fine\n  Traceback (most recent call last):\n", "utf-8")
    assert failures_in(tmp_path) == ["web.log:   Traceback (most recent call last):"]
