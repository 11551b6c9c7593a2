"""The HTTP server over real sockets: deadlines, caps, lanes, and what malformed input gets."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from d8mesh.edge.network import bind
from d8mesh.http import server as server
from d8mesh.http.server import Limits, Listener

PATIENCE_S = 20.0


class Served:
    """A listener with a small application: /wait blocks until released, /write never ends."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.refused: list[tuple[str, str, str]] = []
        self.gone = threading.Event()
        self.waiting = threading.Semaphore(0)
        limits = Limits(threads=4, urgent=("/health",), body_bytes=1000)
        self.listener = Listener(
            self.application, bind("127.0.0.1", 0), limits, lambda *each: self.refused.append(each)
        )
        self.listener.start()

    def application(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        body = b"{}"
        if environ["PATH_INFO"] == "/wait":
            self.waiting.release()
            until = time.monotonic() + PATIENCE_S
            while not self.released.wait(0.05) and time.monotonic() < until:
                if environ["waitress.client_disconnected"]():
                    self.gone.set()
                    break
        if environ["PATH_INFO"] == "/body":
            body = environ["wsgi.input"].read()
        if environ["PATH_INFO"] == "/write":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return self._endless()
        start_response(
            "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        )
        return [body]

    def _endless(self) -> Iterator[bytes]:
        try:
            while not self.released.is_set():
                yield b"x" * 65_536
        finally:
            self.gone.set()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.listener.port), timeout=PATIENCE_S)

    def say(self, text: bytes) -> tuple[int, dict[str, Any], bool]:
        """Send raw bytes; return the status, the JSON body, and whether it was closed."""
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(text)
            answer = b""
            while part := connection.recv(65_536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"application/json" in head
        return int(head.split()[1]), json.loads(body), True


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served()
    yield found
    found.released.set()
    found.listener.close()


def eventually(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def test_a_request_is_answered(served: Served) -> None:
    assert served.say(get("/health"))[0] == 200


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        (b"GET / HTTP/1.1\nHost: x\n\n", 400, "http.bad_request"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, "http.bad_request"),
        (
            b"POST /body HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "http.bad_request",
        ),
        (
            b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 300_000,
            413,
            "http.too_large",
        ),
        (
            b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 100,
            413,
            "http.too_large",
        ),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", 414, "http.url_too_long"),
        (
            b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
            431,
            "http.headers_too_large",
        ),
    ],
)
def test_malformed_input_gets_json_and_is_closed(
    served: Served, text: bytes, status: int, code: str
) -> None:
    found, body, is_closed = served.say(text)
    assert (found, body["code"], is_closed) == (status, code, True)
    assert [each[:2] for each in served.refused] == [(code, "127.0.0.1")]


def test_the_urgent_path_answers_while_every_thread_waits(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(served.connect()).sendall(get("/wait"))
        for _ in range(4):
            assert served.waiting.acquire(timeout=PATIENCE_S)
        assert served.say(get("/health"))[0] == 200


def test_whoever_waits_learns_that_the_client_has_left(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(get("/wait"))
        assert served.waiting.acquire(timeout=PATIENCE_S)
    assert served.gone.wait(PATIENCE_S)


def test_slow_headers_are_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADERS_S", 0.3)
    with served.connect() as silent, served.connect() as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHo")
        assert silent.recv(100) == b""
        assert slow.recv(100) == b""


def test_a_body_that_dribbles_is_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_S", 0.3)
    with served.connect() as slow:
        slow.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nab")
        assert slow.recv(100) == b""
    assert [each[0] for each in served.refused] == ["http.timeout"]


def test_an_answer_that_nobody_reads_is_given_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STUCK_S", 0.5)
    with served.connect() as deaf:
        deaf.sendall(get("/write"))
        assert served.gone.wait(PATIENCE_S)


def test_an_address_has_a_share_of_the_connections_only(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_PER_ADDRESS", 3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(served.connect()).sendall(get("/wait"))
        for _ in range(3):
            assert served.waiting.acquire(timeout=PATIENCE_S)
        status, body, _ = served.say(b"")
        assert (status, body["code"]) == (429, "access.flood")
    eventually(lambda: served.say(get("/health"))[0] == 200)


def test_peers_from_elsewhere_are_turned_away_unread(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "is_admissible", lambda address: False)
    status, body, _ = served.say(b"")
    assert (status, body["code"]) == (403, "http.peer")


def test_two_requests_in_one_packet_are_both_answered(served: Served) -> None:
    first = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with served.connect() as connection:
        connection.sendall(first + get("/health"))
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    assert answer.count(b"200 OK") == 2


def test_the_port_is_free_as_soon_as_it_is_closed(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(get("/wait"))
        assert served.waiting.acquire(timeout=PATIENCE_S)
        served.listener.close(PATIENCE_S)
        bind("127.0.0.1", served.listener.port).close()


def test_a_listener_that_never_ran_lets_its_port_go() -> None:
    bound = bind("127.0.0.1", 0)
    listener = Listener(lambda *_: [], bound, Limits(threads=1), lambda *_: None)
    listener.close()
    bind("127.0.0.1", listener.port).close()
