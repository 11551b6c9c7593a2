"""Answers that are under way are read by one thread, each as if it had one of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from d8mesh.backends.answer_loop import AnswerLoop
from d8mesh.errors import BackendError

PATIENCE_S = 20
COUNT = 20


class Taken:
    """What was taken of one connection, and by which threads."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.content = connection, b""
        self.threads: set[str] = set()
        self.has_some = threading.Event()

    def take(self) -> bool:
        self.threads.add(threading.current_thread().name)
        try:
            data = self.connection.recv(4096)
        except BlockingIOError:
            return False
        self.content += data
        self.has_some.set()
        if b"!" in data:
            raise BackendError("it went wrong")
        return not data


@contextmanager
def connected(count: int) -> Iterator[list[tuple[socket.socket, Taken]]]:
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            far, near = map(stack.enter_context, socket.socketpair())
            near.setblocking(False)
            made.append((far, Taken(near)))
        yield made


def test_many_answers_are_read_to_their_ends_by_one_thread_which_ends_with_them() -> None:
    loop, before = AnswerLoop(), threading.active_count()
    with connected(COUNT) as made, ThreadPoolExecutor(COUNT) as own:
        running = [own.submit(loop.run, taken.connection, taken.take) for _, taken in made]
        for n, (far, taken) in enumerate(made):
            far.sendall(b"%d" % n)
            assert taken.has_some.wait(PATIENCE_S)
            assert not running[n].done()
        for far, _ in made:
            far.shutdown(socket.SHUT_WR)
        for each in running:
            each.result(PATIENCE_S)
        assert [taken.content for _, taken in made] == [b"%d" % n for n in range(COUNT)]
        assert any("answers" in taken.threads for _, taken in made)
    for thread in threading.enumerate():
        if thread.name == "answers":
            thread.join(PATIENCE_S)
    assert threading.active_count() <= before


def test_what_one_answer_raises_is_its_own_and_others_go_on() -> None:
    loop = AnswerLoop()
    with connected(2) as ((far, bad), (other, good)), ThreadPoolExecutor(2) as own:
        failing = own.submit(loop.run, bad.connection, bad.take)
        going = own.submit(loop.run, good.connection, good.take)
        other.sendall(b"a")
        assert good.has_some.wait(PATIENCE_S)
        far.sendall(b"!")
        with pytest.raises(BackendError, match="it went wrong"):
            failing.result(PATIENCE_S)
        other.sendall(b"b")
        other.shutdown(socket.SHUT_WR)
        going.result(PATIENCE_S)
        assert good.content == b"ab"


def test_what_has_come_before_needs_no_other_thread() -> None:
    with connected(1) as ((far, taken),):
        far.close()
        AnswerLoop().run(taken.connection, taken.take)
        assert taken.threads == {threading.current_thread().name}


def test_a_connection_that_others_end_ends_its_answer() -> None:
    loop = AnswerLoop()
    with connected(1) as ((far, taken),), ThreadPoolExecutor(1) as own:
        running = own.submit(loop.run, taken.connection, taken.take)
        far.sendall(b"a")
        assert taken.has_some.wait(PATIENCE_S)
        taken.connection.shutdown(socket.SHUT_RDWR)
        running.result(PATIENCE_S)
