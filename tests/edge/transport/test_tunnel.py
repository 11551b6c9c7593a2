"""A link over HTTP with a small real server on loopback."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest

from d8mesh.core.protocol.codec import decode_to_client
from d8mesh.core.protocol.messages import Rehello
from d8mesh.edge.transport import tunnel
from d8mesh.edge.transport.tunnel import CONTENT_TYPE, LINK_HEADER, ExchangeLink

PATIENCE_S = 20.0


class Server:
    """Takes frames, gives frames; can be told to misbehave."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.to_give: deque[bytes] = deque()
        self.links: set[str] = set()
        self.changed = threading.Condition()
        self.posts = self.polls = 0
        #: answers given instead, one for each request: (status, body), or None: hang up
        self.faults: deque[tuple[int, bytes] | None] = deque()
        self.is_refusing_sends = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))
        self.thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers["Content-Length"])
        body = request.rfile.read(length)
        if len(body) < length:  # the link was closed meanwhile
            request.close_connection = True
            return
        assert request.headers["Content-Type"] == CONTENT_TYPE
        is_poll = "?wait=" in request.path
        with self.changed:
            self.links.add(request.headers[LINK_HEADER])
            self.polls, self.posts = self.polls + is_poll, self.posts + (not is_poll)
            fault: tuple[int, bytes] | None = (200, b"")
            if self.faults and is_poll != self.is_refusing_sends:
                fault = self.faults.popleft()
            if fault != (200, b""):
                self.changed.notify_all()
                self._misbehave(request, fault)
                return
            self.taken += msgspec.msgpack.decode(body, type=list[bytes])
            self.changed.notify_all()
            if "?wait=20" in request.path:
                self.changed.wait_for(lambda: bool(self.to_give), 2.0)
            frames = list(self.to_give) if is_poll else []
            if is_poll:
                self.to_give.clear()
                self.changed.notify_all()
        reply(request, 200, msgspec.msgpack.encode(frames))

    def _misbehave(self, request: BaseHTTPRequestHandler, fault: tuple[int, bytes] | None) -> None:
        if fault is None:
            request.close_connection = True
        else:
            reply(request, *fault)

    def give(self, *frames: bytes) -> None:
        with self.changed:
            self.to_give.extend(frames)
            self.changed.notify_all()

    def wait(self, what: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(what, PATIENCE_S)

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


def reply(request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    with contextlib.suppress(OSError):
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


class Woken:
    """A link, and what it woke us for."""

    def __init__(self, url: str) -> None:
        self.event = threading.Event()
        self.link = ExchangeLink(url, self.event.set)

    def receive(self, count: int) -> list[bytes]:
        found: list[bytes] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(found) < count:
            assert self.event.wait(deadline - time.monotonic()), f"{len(found)} of {count}"
            self.event.clear()
            found += self.link.receive(7)
        return found


@contextlib.contextmanager
def woken_by(url: str) -> Iterator[Woken]:
    woken = Woken(url)
    try:
        yield woken
    finally:
        woken.link.close()


def test_frames_go_both_ways_in_order_over_one_link(server: Server) -> None:
    frames = [b"%d" % n for n in range(100)]
    with woken_by(server.url) as here:
        assert all(here.link.send(frame) for frame in frames)
        server.wait(lambda: len(server.taken) == 100)
        assert server.taken == frames
        for start in range(0, 100, 10):
            server.give(*frames[start : start + 10])
        assert here.receive(100) == frames
    assert len(server.links) == 1
    assert len(next(iter(server.links))) == 32


def test_sending_does_not_wait_for_the_poll(server: Server) -> None:
    with woken_by(server.url) as here:
        server.wait(lambda: server.polls == 1)
        begun = time.monotonic()
        here.link.send(b"now")
        server.wait(lambda: server.taken == [b"now"])
        assert time.monotonic() - begun < 1.5


def test_many_frames_waiting_are_few_requests(server: Server) -> None:
    with woken_by(server.url) as here:
        with server.changed:  # nobody is answered meanwhile
            for n in range(500):
                here.link.send(b"%d" % n)
        server.wait(lambda: len(server.taken) == 500)
        assert server.posts < 100


def test_too_much_waiting_is_refused() -> None:
    with woken_by("http://127.0.0.1:1") as here:
        taken = sum(here.link.send(b"x") for _ in range(2 * tunnel.MAX_WAITING_FRAMES))
        assert tunnel.MAX_WAITING_FRAMES <= taken < 2 * tunnel.MAX_WAITING_FRAMES


@pytest.mark.parametrize("fault", [None, (503, b""), (200, b"nonsense"), (200, b"\x91\x01")])
def test_after_a_lost_answer_the_session_says_hello_again(
    server: Server, fault: tuple[int, bytes] | None
) -> None:
    server.faults.append(fault)
    with woken_by(server.url) as here:
        (first,) = here.receive(1)
        assert isinstance(decode_to_client(first), Rehello)
        server.give(b"next")
        assert here.receive(1) == [b"next"]


def test_frames_that_did_not_arrive_are_sent_again_in_order(server: Server) -> None:
    server.is_refusing_sends = True
    server.faults.extend([None, (503, b"")])
    with woken_by(server.url) as here:
        here.link.send(b"one")
        server.wait(lambda: server.posts == 1)
        here.link.send(b"two")
        server.wait(lambda: len(server.taken) == 2)
        assert server.taken == [b"one", b"two"]


def test_frames_that_are_refused_as_they_are_hold_nobody_up(server: Server) -> None:
    server.is_refusing_sends = True
    server.faults.append((413, b"too large"))
    with woken_by(server.url) as here:
        here.link.send(b"one")
        server.wait(lambda: server.posts == 1)
        here.link.send(b"two")
        server.wait(lambda: server.taken == [b"two"])


def test_what_nobody_takes_is_left_on_the_other_side(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "MAX_WAITING_FRAMES", 10)
    with woken_by(server.url) as here:
        server.give(*[b"x"] * 10)
        server.wait(lambda: not server.to_give)
        assert here.event.wait(PATIENCE_S)
        polls = server.polls
        server.give(b"y")
        assert here.receive(11) == [b"x"] * 10 + [b"y"]
        assert server.polls >= polls


def test_closing_sends_what_waits_and_ends_the_threads(server: Server) -> None:
    before = set(threading.enumerate())
    with woken_by(server.url) as here:
        mine = [t for t in threading.enumerate() if t not in before and t.name == "exchange"]
        server.wait(lambda: server.polls == 1)
        here.link.send(b"goodbye")
    server.wait(lambda: server.taken == [b"goodbye"])
    assert mine
    for thread in mine:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_closing_ends_with_nobody_there() -> None:
    before = set(threading.enumerate())
    with woken_by("http://127.0.0.1:1") as here:
        here.link.send(b"x")
        mine = set(threading.enumerate()) - before
    assert mine
    for thread in mine:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
