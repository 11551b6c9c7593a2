"""The answer to a request as bytes that come in pieces: what is read of it, and what is none."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from d8mesh.edge.transport.http_answer import MAX_ANSWER_HEAD_BYTES, MAX_HEADERS, HttpAnswer

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@contextmanager
def coming(*parts: bytes) -> Iterator[socket.socket]:
    """Have these come, one after the other, and then the end."""
    near, far = socket.socketpair()

    def send() -> None:
        with far:
            for part in parts:
                far.sendall(part)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    with near:
        near.settimeout(30)
        yield near
    sending.join(30)


def body_of(*parts: bytes) -> bytes:
    with coming(*parts) as connection:
        return b"".join(HttpAnswer(connection).chunks())


def test_a_body_is_the_same_however_it_is_cut_on_its_way() -> None:
    whole = CHUNKED + b"5\r\nab\ncd\r\n1;x=y\r\n!\r\n10\r\n0123456789abcdef\r\n0\r\nX: y\r\n\r\n"
    for size in (1, 2, 3, 7, 50, len(whole)):
        parts = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert body_of(*parts) == b"ab\ncd!0123456789abcdef"


def test_chunks_that_are_there_come_together_and_none_is_waited_for() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(30)
        far.sendall(CHUNKED + b"2\r\nab\r\n2\r\ncd\r\n3\r\ne")
        parts = HttpAnswer(near).chunks()
        assert next(parts) == b"abcde"
        far.sendall(b"f")
        assert next(parts) == b"f"
        far.sendall(b"g\r\n")
        assert next(parts) == b"g"
        far.sendall(b"0\r\n\r\n")
        assert list(parts) == []


def test_a_body_has_its_length_or_ends_with_its_connection() -> None:
    assert body_of(OK + b"Content-Length: 4\r\n\r\nab", b"cdef") == b"abcd"
    assert body_of(OK + b"Content-Length: 0\r\n\r\n") == b""
    assert body_of(b"HTTP/1.0 200 OK\r\n\r\nab", b"cd") == b"abcd"
    assert body_of(b"HTTP/1.1 204 None\r\n\r\n") == b""


def test_headers_are_known_by_their_names_in_lower_case() -> None:
    with coming(b"HTTP/1.1 429 Too Many\r\nX-Own:  a \r\nx-OWN: b\r\n\r\nmore") as connection:
        answer = HttpAnswer(connection)
        assert answer.status == 429
        assert answer.getheader("x-own") == "a, b"
        assert answer.getheader("other", "none") == "none"
        assert dict(answer.getheaders()) == {"x-own": "b"}
        assert answer.read(2) == b"mo"


def test_an_early_answer_is_not_the_answer() -> None:
    with coming(
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\n7"
    ) as connection:
        answer = HttpAnswer(connection)
        assert (answer.status, b"".join(answer.chunks())) == (200, b"7")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"no HTTP\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 \r\n\r\n",
        OK,
        OK + b"no header\r\n\r\n",
        OK + b"X: y\r\n" * (MAX_HEADERS + 1) + b"\r\n",
        OK + b"X: " + b"y" * (MAX_ANSWER_HEAD_BYTES + 1),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
        OK + b"Content-Length: 4\r\n\r\nabc",
        CHUNKED,
        CHUNKED + b"zz\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"4\r\nabc",
        CHUNKED + b"4\r\nabcd\r\n",
    ],
)
def test_what_breaks_off_or_is_no_answer_is_an_error(sent: bytes) -> None:
    with pytest.raises((http.client.HTTPException, OSError)):
        body_of(sent)


def test_a_connection_that_does_not_wait_gives_what_is_there_however_it_is_cut() -> None:
    head = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    body = b"3\r\nabc\r\n1\r\nd\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n"
    for size in (1, 2, 3, 7, len(body)):
        far, near = socket.socketpair()
        with far, near:
            far.sendall(head)
            answer = HttpAnswer(near)
            near.setblocking(False)
            found, coming_now = b"", answer.chunks()
            assert next(coming_now) == b""
            for at in range(0, len(body), size):
                far.sendall(body[at : at + size])
                while part := next(coming_now, b""):
                    found += part
            assert (found, answer.is_over) == (b"abcd0123456789", True)
