"""The near end of a tunnel, with a small real server on loopback as its far end."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from d8mesh.edge.transport import tunnel
from d8mesh.edge.transport.tunnel import (
    AT_HEADER,
    BYTES_TYPE,
    END_HEADER,
    EXCHANGE_PATH,
    FROM_HEADER,
    LINK_HEADER,
    MAX_TUNNEL_BYTES,
    WAIT_HEADER,
    Tunnel,
)
from d8mesh.edge.transport.web_client import WebAccess
from tests.http.certified import certified
from tests.http.served import served

PATIENCE_S = 20.0
#: What a request may meet with: an answer instead, no answer after it was taken, none before.
Fault = tuple[int, bytes] | str


class FarEnd:
    """Takes and gives bytes as the exchange does; can be told to misbehave."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        #: link id -> what came of it
        self.taken: dict[str, bytearray] = {}
        self.given, self.ended = bytearray(), set[str]()
        self.sends = self.polls = 0
        self.send_faults: deque[Fault] = deque()
        self.poll_faults: deque[Fault] = deque()
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
        assert request.path == EXCHANGE_PATH
        assert request.headers["Content-Type"] == BYTES_TYPE
        assert len(body) <= MAX_TUNNEL_BYTES
        is_poll = FROM_HEADER in request.headers
        with self.changed:
            self.sends, self.polls = self.sends + (not is_poll), self.polls + is_poll
            faults = self.poll_faults if is_poll else self.send_faults
            fault = faults.popleft() if faults else ""
            if fault == "" or fault == "answer lost":
                status, content = self.carried(request, body)
            elif isinstance(fault, tuple):
                status, content = fault
            else:
                status, content = 0, b""
            self.changed.notify_all()
        if fault == "" or isinstance(fault, tuple):
            reply(request, status, content)
        else:
            request.close_connection = True

    def carried(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        link, fields = request.headers[LINK_HEADER], request.headers
        if AT_HEADER in fields:
            at = int(fields[AT_HEADER])
            if link not in self.taken and at:
                return 410, b"unknown"
            taken = self.taken.setdefault(link, bytearray())
            assert at <= len(taken), "bytes are missing"
            taken += body[len(taken) - at :]
            if END_HEADER in fields:
                self.ended.add(link)
            return 200, b""
        if link not in self.taken:
            return 410, b"unknown"
        since = int(fields[FROM_HEADER])
        if int(fields[WAIT_HEADER]):
            self.changed.wait_for(lambda: len(self.given) > since, 1.0)
        return 200, bytes(self.given[since : since + MAX_TUNNEL_BYTES])

    def give(self, content: bytes) -> None:
        with self.changed:
            self.given += content
            self.changed.notify_all()

    def forget(self) -> None:
        """Know no link any more, as after a restart."""
        with self.changed:
            self.taken.clear()
            self.given.clear()

    def wait(self, what: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(what, PATIENCE_S)

    def has(self, content: bytes) -> bool:
        return any(bytes(taken) == content for taken in self.taken.values())

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
def far() -> Iterator[FarEnd]:
    far = FarEnd()
    yield far
    far.close()


@contextlib.contextmanager
def tunnel_to(url: str) -> Iterator[Tunnel]:
    made = Tunnel(url, WebAccess())
    try:
        yield made
    finally:
        made.close()


def connected(made: Tunnel) -> socket.socket:
    host, _, port = made.endpoint.removeprefix("tcp://").partition(":")
    near = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    near.settimeout(PATIENCE_S)
    return near


def receive(near: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count and (more := near.recv(65536)):
        found += more
    return bytes(found)


def test_bytes_go_both_ways_in_order(far: FarEnd) -> None:
    said, heard = bytes(range(256)) * 8000, bytes(range(255, -1, -1)) * 8000
    with tunnel_to(far.url) as made, connected(made) as near:
        sending = threading.Thread(target=near.sendall, args=(said,))
        sending.start()
        far.give(heard)
        assert receive(near, len(heard)) == heard
        sending.join(PATIENCE_S)
        far.wait(lambda: far.has(said))


def test_a_link_has_32_hex_digits_and_each_connection_another(far: FarEnd) -> None:
    with tunnel_to(far.url) as made:
        for count in (1, 2):
            with connected(made) as near:
                near.sendall(b"x")
                far.wait(lambda count=count: len(far.taken) == count)  # type: ignore[misc]
            far.wait(lambda count=count: len(far.ended) == count)  # type: ignore[misc]
    assert all(len(bytes.fromhex(link)) == 16 for link in far.taken)


def test_sending_does_not_wait_for_the_poll(far: FarEnd) -> None:
    with tunnel_to(far.url) as made, connected(made) as near:
        near.sendall(b"one")
        far.wait(lambda: far.polls >= 1)
        begun = time.monotonic()
        near.sendall(b"two")
        far.wait(lambda: far.has(b"onetwo"))
        assert time.monotonic() - begun < 0.9


@pytest.mark.parametrize("fault", ["answer lost", "not taken", (503, b""), (502, b"<html>")])
def test_what_was_not_acknowledged_is_sent_again_and_taken_once(far: FarEnd, fault: Fault) -> None:
    far.send_faults.extend(["", fault, fault])
    with tunnel_to(far.url) as made, connected(made) as near:
        near.sendall(b"one")
        far.wait(lambda: far.has(b"one"))
        near.sendall(b"two")
        far.wait(lambda: far.sends >= 4)
        near.sendall(b"three")
        far.wait(lambda: far.has(b"onetwothree"))


@pytest.mark.parametrize("fault", ["answer lost", "not taken", (503, b""), (429, b"{}")])
def test_an_answer_that_got_lost_is_asked_for_again(far: FarEnd, fault: Fault) -> None:
    with tunnel_to(far.url) as made, connected(made) as near:
        near.sendall(b"x")
        far.give(b"first ")
        assert receive(near, 6) == b"first "
        far.wait(lambda: far.polls >= 2)
        with far.changed:
            far.poll_faults.append(fault)
        far.give(b"second ")
        far.give(b"third")
        assert receive(near, 12) == b"second third"


def test_too_large_an_answer_is_not_taken(far: FarEnd) -> None:
    far.poll_faults.append((200, bytes(MAX_TUNNEL_BYTES + 1)))
    with tunnel_to(far.url) as made, connected(made) as near:
        near.sendall(b"x")
        far.give(b"good")
        assert receive(near, 4) == b"good"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413])
def test_where_the_link_is_refused_or_unknown_the_connection_ends(far: FarEnd, status: int) -> None:
    with tunnel_to(far.url) as made:
        with connected(made) as near:
            near.sendall(b"x")
            far.wait(lambda: far.has(b"x"))
            with far.changed:
                far.send_faults.append((status, b"{}"))
            near.sendall(b"y")
            assert receive(near, 1) == b""
        with connected(made) as near:
            near.sendall(b"z")
            far.wait(lambda: far.has(b"z"))


def test_after_a_restart_of_the_other_side_the_connection_ends(far: FarEnd) -> None:
    with tunnel_to(far.url) as made, connected(made) as near:
        near.sendall(b"x")
        far.wait(lambda: far.has(b"x"))
        far.forget()
        assert receive(near, 1) == b""


def test_an_orchestrator_that_is_away_ends_the_connection_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tunnel, "TUNNEL_PAUSE_S", 0.01)
    monkeypatch.setattr(tunnel, "GIVE_UP_S", 0.05)
    with tunnel_to("http://127.0.0.1:1") as made, connected(made) as near:
        near.sendall(b"x")
        assert receive(near, 1) == b""


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ((401, b'{"error":"send the key","code":"access.token"}'), "send the key"),
        ((403, b"<html>" * 1000), "status 403"),
        ((404, b'{"error":5}'), "status 404"),
        ((400, b'{"error":"' + b"x" * 4000 + b'"}'), "x" * tunnel.MAX_SENTENCE_BYTES),
        ((410, b'{"error":"gone"}'), ""),
    ],
)
def test_why_nothing_is_let_through_is_known_until_it_is(
    far: FarEnd, fault: Fault, told: str
) -> None:
    far.send_faults.append(fault)
    with tunnel_to(far.url) as made:
        with connected(made) as near:
            near.sendall(b"x")
            assert receive(near, 1) == b""
            assert made.trouble == told
        with connected(made) as near:
            near.sendall(b"x")
            far.wait(lambda: far.has(b"x"))
            far.wait(lambda: far.polls > 0)
            assert made.trouble == ""


def test_a_certificate_that_is_not_good_is_told_and_nothing_is_said() -> None:
    with served(tls=certified()) as here:
        with tunnel_to(f"https://127.0.0.1:{here.port}") as made, connected(made) as near:
            near.sendall(b"x")
            assert receive(near, 1) == b""
            assert f"D8_TLS_TRUST={certified().fingerprint}" in made.trouble
        assert here.refused.noted == []


def test_refusals_are_not_asked_for_in_a_rush(far: FarEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """As libzmq connects anew at once, the pause has to be made here."""
    pauses: list[float] = []
    far.send_faults.extend([(403, b"not you")] * 4)
    with tunnel_to(far.url) as made:
        monkeypatch.setattr(made._closing, "wait", pauses.append)
        for count in (1, 2, 3, 4):
            with connected(made) as near:
                near.sendall(b"x")
                far.wait(lambda count=count: far.sends == count)  # type: ignore[misc]
                assert receive(near, 1) == b""
        with connected(made) as near:
            near.sendall(b"x")
            far.wait(lambda: far.has(b"x"))
    assert pauses == [1.0, 2.0, 4.0, 5.0]


def test_a_link_that_takes_nothing_is_given_nothing(far: FarEnd) -> None:
    with tunnel_to(far.url) as made, connected(made) as near:
        near.sendall(b"x")
        far.give(bytes(24 * 1024 * 1024))
        before = -1
        while before != far.polls:  # until the connection is full
            before = far.polls
            with far.changed:
                far.changed.wait(0.5)
        assert before * MAX_TUNNEL_BYTES < len(far.given)
        assert len(receive(near, len(far.given))) == len(far.given)


def threads_since(before: set[threading.Thread]) -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name == "exchange"} - before


def test_closing_sends_what_waits_and_ends_the_threads(far: FarEnd) -> None:
    before = set(threading.enumerate())
    made = Tunnel(far.url, WebAccess())
    with connected(made) as near:
        near.sendall(b"hello")
        far.wait(lambda: far.polls >= 1)
        mine = threads_since(before)
        near.sendall(b"goodbye")
    made.close()
    far.wait(lambda: far.has(b"hellogoodbye") and len(far.ended) == 1)
    assert mine
    for thread in mine:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("is_used", [False, True])
def test_closing_ends_with_nobody_there(is_used: bool) -> None:
    before = set(threading.enumerate())
    made = Tunnel("http://127.0.0.1:1", WebAccess())
    mine = threads_since(before)
    assert mine
    if is_used:
        with connected(made) as near:
            near.sendall(b"x")
    made.close()
    for thread in mine:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
