"""TLS below a connection: what is no TLS, too slow, too many; `test_connection` has the rest."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator

import pytest

from d8mesh.http import connection, server
from tests.http.certified import certified
from tests.http.served import PATIENCE_S, Served, get, served


@pytest.fixture
def here() -> Iterator[Served]:
    with served(tls=certified()) as found:
        yield found


def eventually(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def all_of(opened: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while part := opened.recv(65_536):
            answer += part
    return answer


@pytest.mark.parametrize(
    ("said", "path"),
    [(get("/scope?a=b"), "/scope"), (b"P", ""), (b"\0\0\0\0", ""), (b"SSH-2.0-x\r\n", "")],
)
def test_plain_http_is_told_to_speak_https_in_the_form_of_its_door(
    here: Served, said: bytes, path: str
) -> None:
    with here.connect_plainly() as plain:
        plain.sendall(said)
        head, _, body = all_of(plain).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    told = json.loads(body)
    assert told["code"] == "http.plain"
    assert f"ask https://127.0.0.1:{here.port}" in told["error"]
    assert here.refused.noted == [("http.plain", "127.0.0.1")]
    assert here.places == [(path, None)]
    assert b"200 OK" in here.say(get("/scope"))


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_a_handshake_that_dribbles_is_closed_and_counted_and_silence_is_closed(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADERS_S", 0.3)
    hello = client_hello()
    with here.connect_plainly() as slow, here.connect_plainly() as silent:
        slow.sendall(hello[: len(hello) // 2])
        assert all_of(slow) == b""
        assert all_of(silent) == b""
    assert here.refused.noted == [("http.timeout", "127.0.0.1")]


def test_a_handshake_that_goes_no_further_is_closed(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADERS_S", 0.3)
    with here.connect_plainly() as half:
        half.sendall(client_hello())
        assert all_of(half)  # the server's part of it, and no more
    assert here.refused.noted == [("http.timeout", "127.0.0.1")]


@pytest.mark.parametrize("kind", ["bytes", "large", "old"])
def test_what_is_no_tls_after_all_ends_the_connection_alone(here: Served, kind: str) -> None:
    said = {
        "bytes": b"\x16" + secrets.token_bytes(500),
        "large": b"\x16\x03\x01\xff\xff" + bytes(70_000),
        "old": b"\x16\x03\x00\x00\x05\x01\x00\x00\x01\x00",
    }[kind]
    with here.connect() as healthy, here.connect_plainly() as bad:
        with contextlib.suppress(ConnectionError):
            bad.sendall(said)
        all_of(bad)
        healthy.sendall(get("/scope"))
        assert b"200 OK" in healthy.recv(1000)
    eventually(lambda: not here.server._connections)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken(here: Served, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=str(certified().certificate))
    context.minimum_version = context.maximum_version = version
    with context.wrap_socket(here.connect_plainly(), server_hostname="localhost") as secure:
        assert secure.version() == version.name.replace("TLSv1_", "TLSv1.")
        secure.sendall(get("/scope"))
        assert b"200 OK" in secure.recv(1000)


def test_connections_in_a_handshake_count_like_others(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_PER_ADDRESS", 2)
    with here.connect_plainly(), here.connect_plainly():
        eventually(lambda: len(here.server._connections) == 2)
        with here.connect_plainly() as third:
            assert all_of(third) == b""
        assert here.refused.noted == [("access.flood", "127.0.0.1")]
    eventually(lambda: b"200 OK" in here.say(get("/scope")))


def test_who_may_not_ask_is_not_given_a_handshake() -> None:
    with served(admits=False, tls=certified()) as here:
        with here.connect_plainly() as stranger:
            with contextlib.suppress(ConnectionError):
                stranger.sendall(client_hello())
            assert all_of(stranger) == b""
        assert here.refused.noted == [("http.peer", "127.0.0.1")]


def test_an_answer_ends_with_a_goodbye_so_that_no_cut_looks_like_it(here: Served) -> None:
    with here.connect() as reader:
        reader.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        reader.sendall(get("/large"))
        assert all_of(reader).endswith(b"x" * 1000)


def test_what_is_under_way_ends_with_the_server(here: Served) -> None:
    with here.connect() as reader, here.connect_plainly() as half:
        reader.sendall(get("/wait"))
        assert here.waiting.acquire(timeout=PATIENCE_S)
        half.sendall(client_hello())
        here.thread.close(PATIENCE_S)
        assert all_of(reader) == b""
        assert here.is_gone.wait(PATIENCE_S)


def test_a_reader_that_stops_holds_up_whoever_writes(here: Served) -> None:
    with here.connect() as slow:
        slow.sendall(get("/write"))
        eventually(lambda: any(each._writable for each in here.server._connections))
        (kept,) = here.server._connections
        assert kept._transport.get_write_buffer_size() < 10 * connection.WAITING_BYTES
    assert here.is_gone.wait(PATIENCE_S)
