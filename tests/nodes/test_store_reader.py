"""What is asked of the store is answered on a thread beside; a fault there is an answer too."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from d8mesh.core.broker.effects import Load
from d8mesh.core.broker.store import OutcomesOf, StoreAnswer, Unreadable
from d8mesh.edge.sqlite import Journal
from d8mesh.edge.transport.sockets import Loop, Waker
from d8mesh.errors import JournalError
from d8mesh.nodes.store_reader import StoreReader

PATIENCE_S = 20.0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (JournalError("a row is damaged"), "a row is damaged"),
        (KeyError("x"), "the journal cannot be read here"),
    ],
)
def test_answers_come_with_their_numbers_and_wake_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    journal, waker = Journal(tmp_path / "journal.db"), Waker()
    loop, reader = Loop(waker), StoreReader(journal, waker)
    try:
        reader.ask(Load(7, OutcomesOf(["0123456789abcdef-0"])))
        loop.wait(PATIENCE_S)
        answered = reader.answers.popleft()
        assert answered.number == 7
        assert not isinstance(answered.answer, Unreadable)

        def damaged(self: Journal, question: object) -> StoreAnswer:
            raise error

        monkeypatch.setattr(Journal, "ask", damaged)
        reader.ask(Load(8, OutcomesOf([])))
        deadline = time.monotonic() + PATIENCE_S
        while not reader.answers and time.monotonic() < deadline:
            loop.wait(0.1)
        assert reader.answers.popleft().answer == Unreadable(told)
    finally:
        reader.close()
        journal.close()
        waker.close()
