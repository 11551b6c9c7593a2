"""Connections that are used again: only such as nothing stands against, and never for long."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from d8mesh.backends.answer_clocks import AnswerClocks
from d8mesh.backends.kept_connections import CONNECTION_KEPT_S, MAX_KEPT, KeptConnections
from d8mesh.edge.transport.http_answer import HttpAnswer

PLACE = ("127.0.0.1", 1)
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
BEGUN = HEAD + b"\r\n2\r\n7\n\r\n"
END = b"0\r\n\r\n"


class Idle(AnswerClocks):
    """Looks at nothing by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: list[object] = []

    def watch(self, look: Callable[[float], None]) -> None:
        self.watched.append(look)

    def forget(self, look: Callable[[float], None]) -> None:
        self.watched.remove(look)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def kept() -> KeptConnections:
    return KeptConnections(Idle())


def answered(stack: ExitStack, sent: bytes) -> tuple[socket.socket, socket.socket, HttpAnswer]:
    """Return both ends of a connection, and the answer over it, of which one part was read."""
    near, far = (stack.enter_context(each) for each in socket.socketpair())
    near.settimeout(30)
    far.sendall(sent)
    answer = HttpAnswer(near)
    next(answer.chunks())
    return near, far, answer


def is_closed(connection: socket.socket) -> bool:
    return connection.fileno() < 0


def test_one_whose_answer_has_ended_is_used_again(stack: ExitStack, kept: KeptConnections) -> None:
    near, far, answer = answered(stack, BEGUN)
    kept.keep(PLACE, near, answer)
    far.sendall(END)
    assert kept.take(("127.0.0.1", 2)) is None
    assert kept.take(PLACE) is near
    assert near.getblocking()
    assert kept.take(PLACE) is None


@pytest.mark.parametrize("more", [b"", END[:3], b"1\r\n8\r\n" + END, END + b"HTTP/1.1 408 Late"])
def test_one_that_has_not_ended_or_says_more_is_not(
    stack: ExitStack, kept: KeptConnections, more: bytes
) -> None:
    near, far, answer = answered(stack, BEGUN)
    kept.keep(PLACE, near, answer)
    far.sendall(more)
    assert kept.take(PLACE) is None
    assert is_closed(near)


def test_one_that_the_other_side_has_left_is_not(stack: ExitStack, kept: KeptConnections) -> None:
    near, far, answer = answered(stack, BEGUN + END)
    kept.keep(PLACE, near, answer)
    far.close()
    assert kept.take(PLACE) is None
    assert is_closed(near)


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Connection: Close\r\n\r\n2\r\n7\n\r\n" + END,
        HEAD.replace(b"1.1", b"1.0") + b"\r\n2\r\n7\n\r\n" + END,
        HEAD.replace(b"200", b"500") + b"\r\n2\r\n7\n\r\n" + END,
        b"HTTP/1.1 200 OK\r\n\r\n7",
    ],
)
def test_what_ends_with_its_answer_is_not_kept(
    stack: ExitStack, kept: KeptConnections, sent: bytes
) -> None:
    near, _, answer = answered(stack, sent)
    kept.keep(PLACE, near, answer)
    assert is_closed(near)
    assert kept.count == 0


def test_none_is_kept_for_long_and_not_too_many(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Idle()
    kept = KeptConnections(clocks)
    several = [answered(stack, BEGUN + END) for _ in range(MAX_KEPT + 1)]
    for near, _, answer in several:
        kept.keep(PLACE, near, answer)
    assert kept.count == MAX_KEPT
    assert is_closed(several[-1][0])
    assert clocks.watched == [kept.look]
    now = time.monotonic()
    kept.look(now)
    assert kept.count == MAX_KEPT
    monkeypatch.setattr(time, "monotonic", lambda: now + 2 * CONNECTION_KEPT_S)
    assert kept.take(PLACE) is None
    near, _, answer = answered(stack, BEGUN + END)
    kept.keep(PLACE, near, answer)
    kept.look(now + 4 * CONNECTION_KEPT_S)
    assert kept.count == 0
    assert clocks.watched == []
