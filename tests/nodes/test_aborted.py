"""Who waits for something is told once his attempt is no longer wanted."""

from __future__ import annotations

from d8mesh.nodes.worker.aborted import Aborted

TOKEN, OTHER = b"token", b"other"


def test_what_is_to_be_done_is_done_at_once_and_only_for_its_own_attempt() -> None:
    aborted, done = Aborted(), list[str]()
    aborted.on_add(TOKEN, lambda: done.append("one"))
    aborted.on_add(TOKEN, lambda: done.append("two"))
    aborted.add([OTHER])
    assert done == []
    aborted.add([TOKEN])
    assert done == ["one", "two"]
    assert TOKEN in aborted


def test_who_comes_after_it_is_told_at_once() -> None:
    aborted, done = Aborted(), list[str]()
    aborted.add([TOKEN])
    aborted.on_add(TOKEN, lambda: done.append("late"))
    assert done == ["late"]


def test_what_was_undone_is_not_done() -> None:
    aborted, done = Aborted(), list[str]()
    undo = aborted.on_add(TOKEN, lambda: done.append("one"))
    undo()
    undo()
    aborted.add([TOKEN])
    assert done == []


def test_of_attempts_that_have_ended_nothing_is_left() -> None:
    aborted = Aborted()
    assert not aborted
    aborted.add([TOKEN])
    aborted.forget([TOKEN, OTHER])
    assert not aborted
    assert TOKEN not in aborted
