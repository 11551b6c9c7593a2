"""A task followed from its submit: pieces in order, a new attempt, silence, the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from d8mesh.apps import following as module
from d8mesh.apps.following import Following, TaskListener, tell_it_goes_on
from d8mesh.errors import NodeClosedError, TaskFailedError, TaskRejectedError, WaitTimeoutError
from d8mesh.nodes.client import RESTARTED, Missed


class Played:
    """A task that plays a piece; keeps the protocol of the client's handle."""

    id = "s-1"
    warnings = ("nobody offers that\x1b[31m",)

    def __init__(self, *pieces: Any, refusal: Exception | None = None, stays: bool = False) -> None:
        self._pieces, self._refusal, self._stays = pieces, refusal, stays
        self.closed = threading.Event()

    def submit(self, kind: str, data: Mapping[str, Any], /, **options: Any) -> Played:
        assert options["listen"] is True, "else the first pieces may be missed"
        return self

    def wait_accepted(self, timeout: float | None = None) -> None:
        if isinstance(self._refusal, TaskRejectedError):
            raise self._refusal

    def stream(self, timeout: float | None = None) -> Iterator[Any]:
        yield from self._pieces
        if self._stays:
            self.closed.wait(60)
            raise NodeClosedError

    def status(self, timeout: float | None = None) -> Mapping[str, Any]:
        return {"reason": "all are busy"}

    def cancel(self) -> bool:
        raise AssertionError("who stops listening cancels nothing")

    def result(self, timeout: float | None = None) -> Mapping[str, Any]:
        if self._refusal is not None:
            raise self._refusal
        return {"success": True}


def followed(task: Played, within_s: float | None = None) -> list[Any]:
    heard: list[Any] = []

    class Listener(TaskListener):
        def piece(self, piece: Any) -> None:
            heard.append(piece)

        def restarted(self) -> None:
            heard.append("restarted")

        def missed(self, count: int | None) -> None:
            heard.append(("missed", count))

        def silent(self, reason: str) -> None:
            heard.append(f"silence: {reason}")

    until = None if within_s is None else time.monotonic() + within_s
    try:
        Following(task, "speak", {}).result(until, Listener())
    except (WaitTimeoutError, TaskFailedError, TaskRejectedError) as error:
        heard.append(type(error))
    finally:
        task.closed.set()
    return heard


def test_pieces_come_in_order_and_what_is_void_or_missing_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pieces = ("a", {"b": 1}, None, RESTARTED, 2.5, Missed(3), "c", Missed(None))
    assert followed(Played(*pieces)) == [
        "a", {"b": 1}, None, "restarted", 2.5, ("missed", 3), "c", ("missed", None),
    ]  # fmt: skip
    assert capsys.readouterr().err == "warning: nobody offers that\\x1b[31m\n"


def test_a_failure_comes_after_what_was_heard() -> None:
    assert followed(Played("a", refusal=TaskFailedError("no"))) == ["a", TaskFailedError]


def test_a_refused_submit_is_not_waited_for() -> None:
    task = Played(refusal=TaskRejectedError("no"), stays=True)
    assert followed(task) == [TaskRejectedError]


def test_silence_is_told_once_for_each_reason_until_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.05)
    monkeypatch.setattr(module, "OLDEST_WAIT_S", 0.02)
    assert followed(Played("a", stays=True), 0.4) == [
        "a", "silence: all are busy", WaitTimeoutError,
    ]  # fmt: skip


def test_who_waits_shorter_than_that_is_told_the_reason_at_the_end() -> None:
    assert followed(Played("a", stays=True), 0.2) == [
        "a", "silence: all are busy", WaitTimeoutError,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (None, "task s-1 goes on without you:"),
        (WaitTimeoutError("no"), "task s-1 is not acknowledged yet; if it will be:"),
    ],
)
def test_only_of_an_acknowledged_task_is_it_said_that_it_goes_on(
    capsys: pytest.CaptureFixture[str], refusal: Exception | None, told: str
) -> None:
    class Leaving(Played):
        def wait_accepted(self, timeout: float | None = None) -> None:
            if refusal is not None:
                raise refusal

    tell_it_goes_on(Leaving())
    first, *hints = capsys.readouterr().err.splitlines()
    assert first == told
    assert all("s-1" in hint for hint in hints)
    assert len(hints) == 2
