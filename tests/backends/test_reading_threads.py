"""A thread that has read an answer reads the next one, and ends when there is none."""

from __future__ import annotations

import queue
import threading
import time

import pytest

from d8mesh.backends import reading_threads
from d8mesh.backends.reading_threads import ReadingThreads

PATIENCE_S = 30


def test_what_comes_after_another_needs_no_new_thread() -> None:
    threads, ran = ReadingThreads(), queue.SimpleQueue[threading.Thread]()
    threads.run(lambda: ran.put(threading.current_thread()))
    first = ran.get(timeout=PATIENCE_S)
    until = time.monotonic() + PATIENCE_S
    while not threads._idle and time.monotonic() < until:
        time.sleep(0.001)
    threads.run(lambda: ran.put(threading.current_thread()))
    assert ran.get(timeout=PATIENCE_S) is first


def test_each_that_is_at_work_has_a_thread_of_its_own() -> None:
    threads, together = ReadingThreads(), threading.Barrier(21)

    def meet() -> None:
        together.wait(PATIENCE_S)

    for _ in range(20):
        threads.run(meet)
    together.wait(PATIENCE_S)


def test_a_thread_without_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_threads, "KEPT_READER_S", 0.01)
    threads, ran = ReadingThreads(), queue.SimpleQueue[threading.Thread]()
    threads.run(lambda: ran.put(threading.current_thread()))
    thread = ran.get(timeout=PATIENCE_S)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    threads.run(lambda: ran.put(threading.current_thread()))
    assert ran.get(timeout=PATIENCE_S) is not thread
