"""What is asked of the store is answered on a thread beside; a fault there is an answer too."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from d8mesh.core.broker.effects import Load
from d8mesh.core.broker.store import OutcomesOf, PageOf, StoreAnswer, Unreadable
from d8mesh.edge.sqlite import Journal
from d8mesh.edge.transport.sockets import Loop, Waker
from d8mesh.errors import JournalError
from d8mesh.nodes import store_reader
from d8mesh.nodes.store_reader import StoreReader
from tests.end_to_end.processes import until

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


class Shelf:
    """A store that answers when it may, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.may_answer = threading.Semaphore(0)

    def ask(self, question: object) -> StoreAnswer:
        self.asked.append(question)
        assert self.may_answer.acquire(timeout=PATIENCE_S)
        return Unreadable("nothing")


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    made = Shelf()
    yield made
    for _ in range(100):
        made.may_answer.release()


def page(cursor: str) -> PageOf:
    return PageOf(10, cursor)


@contextlib.contextmanager
def reading(
    shelf: Shelf, is_awaited: Callable[[str], bool] = lambda session: True
) -> Iterator[StoreReader]:
    waker = Waker()
    reader = StoreReader(shelf, waker, is_awaited=is_awaited)  # type: ignore[arg-type]
    try:
        yield reader
    finally:
        for _ in range(100):
            shelf.may_answer.release()
        reader.close()
        waker.close()


def test_pages_come_after_all_else_and_clients_take_turns(shelf: Shelf) -> None:
    with reading(shelf) as reader:
        reader.ask(Load(0, page("first"), "greedy"))
        until(lambda: shelf.asked, "the first is asked")
        for number in range(1, 5):
            reader.ask(Load(number, page(f"greedy {number}"), "greedy"))
        reader.ask(Load(5, page("modest 1"), "modest"))
        reader.ask(Load(6, page("modest 2"), "modest"))
        reader.ask(Load(7, OutcomesOf([]), "modest"))
        for _ in range(8):
            shelf.may_answer.release()
        until(lambda: len(reader.answers) == 8, "all are answered")
    assert [each.number for each in reader.answers] == [0, 7, 1, 5, 2, 6, 3, 4]


def test_a_page_that_nobody_waits_for_is_not_made(shelf: Shelf) -> None:
    with reading(shelf, lambda session: session != "gone") as reader:
        reader.ask(Load(1, page("a"), "gone"))
        reader.ask(Load(2, page("b"), "there"))
        shelf.may_answer.release()
        until(lambda: len(reader.answers) == 2, "both are answered")
    assert shelf.asked == [page("b")]
    assert reader.answers[0].answer == Unreadable("nobody waits for this page any more")


def test_while_the_broker_is_busy_there_are_pauses_between_pages(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "process_time", itertools.count(0.0, 10.0).__next__)
    monkeypatch.setattr(time, "thread_time", itertools.count(0.0, 1.0).__next__)
    with reading(shelf) as reader:
        reader.ask(Load(1, page("a"), "c"))
        reader.ask(Load(2, page("b"), "c"))
        shelf.may_answer.release()
        until(lambda: len(reader.answers) == 1, "the first is answered")
        begun = time.monotonic()
        reader.ask(Load(3, OutcomesOf([]), "c"))
        shelf.may_answer.release()
        until(lambda: len(reader.answers) == 2, "what is no page is answered")
        assert reader.answers[1].number == 3
        shelf.may_answer.release()
        until(lambda: len(reader.answers) == 3, "the second page too, in the end")
        assert time.monotonic() - begun > store_reader.MAX_PAUSE_S * 0.7
