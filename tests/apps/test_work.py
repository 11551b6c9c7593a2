"""Outcomes come as tasks end, in whatever order; silence is explained."""

from __future__ import annotations

import threading
import time

import pytest

from d8mesh.apps import work
from d8mesh.apps.work import cancel_all, connect, connected, outcomes
from d8mesh.config import Config
from d8mesh.errors import BrokerUnavailableError, WaitTimeoutError
from d8mesh.handlers import Data, Handler, TaskContext
from d8mesh.handlers.echo import echo
from tests.in_process import InProcess

PATIENCE_S = 30


def test_outcomes_come_as_tasks_end() -> None:
    gate = threading.Event()

    def gated(data: Data, context: TaskContext) -> object:
        if data["n"] == 0:
            assert gate.wait(PATIENCE_S)
        return echo(data, context)

    with InProcess({"gated": gated}) as mesh:
        seen = []
        for outcome in outcomes(mesh.submit_many("gated", [{"n": n} for n in range(4)])):
            seen.append(outcome.index)
            assert outcome.result == {"success": True, "output": {"n": outcome.index}}
            if len(seen) == 3:
                gate.set()
    assert (seen[-1], sorted(seen)) == (0, [0, 1, 2, 3])


def test_failed_and_cancelled_tasks_are_outcomes_too() -> None:
    def broken(data: Data, context: TaskContext) -> object:
        raise ValueError("out of luck")

    with InProcess({"broken": broken}) as mesh:
        (failed,) = outcomes(mesh.submit_many("broken", [{}]))
        lost = mesh.submit_many("nobody runs this", [{}])
        cancel_all(lost)
        (cancelled,) = outcomes(lost)
    assert (failed.result, failed.error) == (None, "ValueError: out of luck")
    assert (cancelled.result, cancelled.error) == (None, "The task was cancelled.")


def test_silence_is_explained_once_and_the_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SILENCE_S", 0.1)
    handlers: dict[str, Handler] = {}
    reasons: list[str] = []
    with InProcess(handlers) as mesh:
        tasks = mesh.submit_many("agent_action", [{}, {}])
        until = time.monotonic() + 1.5
        with pytest.raises(WaitTimeoutError, match="2 of 2 tasks"):
            list(outcomes(tasks, until=until, on_silence=reasons.append))
    assert reasons == ["no worker in the mesh runs agent_action"]


def test_what_nobody_can_run_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SILENCE_S", 0.05)
    handlers: dict[str, Handler] = {}
    with InProcess(handlers) as mesh:
        tasks = mesh.submit_many("agent_action", [{}, {}])
        with pytest.raises(WaitTimeoutError, match=r"2 of 2 tasks wait for .* runs agent_action"):
            list(outcomes(tasks, nobody_s=0.2))


def test_no_tasks_have_no_outcomes() -> None:
    assert list(outcomes([])) == []


class Looking:
    """Finds an orchestrator at the given time of asking; 0 is never."""

    def __init__(self, found_at: int) -> None:
        self.found_at = found_at
        self.waits_s: list[float | None] = []
        self.trouble = "never connected: the connection is refused"

    def wait_connected(self, timeout: float | None = None) -> bool:
        self.waits_s.append(timeout)
        return len(self.waits_s) == self.found_at


def test_an_orchestrator_that_is_there_needs_no_words() -> None:
    said: list[str] = []
    connect(Looking(1), timeout_s=None, on_wait=said.append)
    assert said == []


def test_the_search_for_an_orchestrator_is_part_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began: list[float] = []
    monkeypatch.setattr(work, "connect", lambda *_, **__: began.append(time.monotonic()))
    with connected(Config(orchestrator_url="http://127.0.0.1:9"), 60.0) as (_, until):
        assert until is not None
        assert until - 60.0 <= began[0]


def test_one_that_comes_later_is_waited_for_and_said() -> None:
    said: list[str] = []
    connect(Looking(2), timeout_s=None, on_wait=said.append)
    (line,) = said
    assert "refused" in line


def test_without_an_orchestrator_the_error_says_what_to_do() -> None:
    looking = Looking(0)
    with pytest.raises(BrokerUnavailableError, match=r"within 7 s: never connected: .* refused"):
        connect(looking, timeout_s=7, on_wait=lambda line: None)
    assert sum(wait_s or 0 for wait_s in looking.waits_s) == 7


def test_who_waits_shortly_is_told_the_reason_once() -> None:
    said: list[str] = []
    with pytest.raises(BrokerUnavailableError, match="refused"):
        connect(Looking(99), timeout_s=5, on_wait=said.append)
    assert said == []
