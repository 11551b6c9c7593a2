"""A start after another one in the same folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from d8mesh.edge.presence import Presence, is_present
from d8mesh.edge.sqlite import Journal
from d8mesh.errors import JournalHeldError
from d8mesh.processes import takeover
from d8mesh.processes.takeover import TAKEOVER_S, take_over, web_presence, when_free


class Start:
    """One start, and what it said; while it waits, `meanwhile` happens."""

    def __init__(self, journal: Path) -> None:
        self.journal, self.told, self.waited_s = journal, list[float](), 0.0
        self.meanwhile: Callable[[], bool] = lambda: False

    def take_over(self) -> tuple[Presence, bool]:
        return take_over(self.journal, tell=self.told.append, pause=self.pause)

    def pause(self, seconds: float) -> bool:
        self.waited_s += seconds
        return self.meanwhile()


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return Start(tmp_path / "journal.db")


def test_a_first_start_waits_for_nobody(start: Start) -> None:
    launcher, has_waited = start.take_over()
    assert (has_waited, start.told, start.waited_s) == (False, [], 0.0)
    launcher.leave()


def test_a_launcher_that_is_well_is_let_be(start: Start) -> None:
    launcher, _ = start.take_over()
    journal = Journal(start.journal)
    with pytest.raises(JournalHeldError, match=r"in use by another orchestrator \(process \d+\)"):
        start.take_over()
    assert start.told == []
    journal.close()
    with pytest.raises(JournalHeldError):  # also while its broker is being started again
        start.take_over()
    launcher.leave()


def test_a_broker_and_a_rest_process_that_are_left_are_waited_for(start: Start) -> None:
    left = [web_presence(start.journal.parent).leave, Journal(start.journal).close]

    def one_ends() -> bool:
        left.pop()()
        return False

    start.meanwhile = one_ends
    launcher, has_waited = start.take_over()
    assert (has_waited, left, start.told) == (True, [], [TAKEOVER_S])
    launcher.leave()


def test_who_does_not_end_keeps_the_folder(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "TAKEOVER_S", 0.05)
    journal = Journal(start.journal)
    with pytest.raises(JournalHeldError, match="in use by another orchestrator"):
        start.take_over()
    assert start.waited_s > 0
    assert not is_present(start.journal.with_name("launcher.lock"))
    journal.close()


def test_what_is_held_for_a_moment_is_opened_after_it(start: Start) -> None:
    held = [Journal(start.journal)]

    def opened() -> Journal:
        try:
            return Journal(start.journal)
        except JournalHeldError:
            held.pop().close()
            raise

    when_free(opened).close()
    assert held == []


def test_what_is_held_for_good_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "TAKEOVER_S", 0.05)
    journal = Journal(start.journal)
    with pytest.raises(JournalHeldError):
        when_free(lambda: Journal(start.journal))
    journal.close()


def test_who_is_told_to_stop_waits_no_longer(start: Start) -> None:
    journal = Journal(start.journal)
    start.meanwhile = lambda: True
    launcher, has_waited = start.take_over()
    assert (has_waited, len(start.told)) == (True, 1)
    journal.close()
    launcher.leave()
