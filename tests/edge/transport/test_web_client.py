"""Connections to a REST port: whose certificate is good, and what is said of others."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest

from d8mesh.core.protocol.addresses import host_of
from d8mesh.edge.network.probe import told as meaning_of
from d8mesh.edge.transport import web_client
from d8mesh.edge.transport.web_client import asked_host, connect_to, get_json
from tests.http.certified import certified
from tests.http.served import PATIENCE_S, Served, get, served


@pytest.fixture
def here() -> Iterator[Served]:
    with served(tls=certified()) as found:
        yield found


def said_over(connection: socket.socket) -> bytes:
    with contextlib.closing(connection):
        connection.sendall(get("/scope"))
        return connection.recv(1000)


def test_a_certificate_is_good_by_its_fingerprint_whatever_its_names_say(here: Served) -> None:
    trusted = {"0" * 64, "", certified().fingerprint}
    url = f"https://127.0.0.1:{here.port}"
    assert b"200 OK" in said_over(connect_to(url, trusted, timeout_s=PATIENCE_S))


def test_a_certificate_is_good_by_an_authority_also_where_another_is_trusted(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context(cafile=str(certified().certificate))
    monkeypatch.setattr(web_client, "_by_authorities", lambda: context)
    url = f"https://127.0.0.1:{here.port}"
    for trusted in (set[str](), {"0" * 64}):
        assert b"200 OK" in said_over(connect_to(url, trusted, timeout_s=PATIENCE_S))


@pytest.mark.parametrize("trusted", [set(), {""}, {"0" * 64}])
def test_of_another_certificate_the_fingerprint_is_told_and_nothing_is_said(
    here: Served, trusted: set[str]
) -> None:
    url = f"https://127.0.0.1:{here.port}"
    with pytest.raises(ssl.SSLCertVerificationError) as raised:
        connect_to(url, trusted, timeout_s=PATIENCE_S)
    told = str(raised.value)
    assert told.startswith(f"{url} shows ")
    assert ("another certificate" in told) == ("0" * 64 in trusted)
    assert f"set D8_TLS_TRUST={certified().fingerprint}" in told
    assert here.refused.noted == []


def test_plain_http_is_not_taken_for_https_nor_the_reverse(here: Served) -> None:
    with served() as plain:
        url = f"https://127.0.0.1:{plain.port}"
        with pytest.raises(OSError, match=f"speaks no HTTPS: is it http://127.0.0.1:{plain.port}"):
            connect_to(url, {"0" * 64}, timeout_s=PATIENCE_S)
    url = f"http://127.0.0.1:{here.port}"
    answer = get_json(url, "/scope", (), timeout_s=PATIENCE_S, max_bytes=1000)
    assert f"ask https://127.0.0.1:{here.port}" in answer["error"]


def test_json_is_asked_for(here: Served) -> None:
    url, trusted = f"https://127.0.0.1:{here.port}", {certified().fingerprint}
    told = get_json(url, "/scope?a=b", trusted, timeout_s=PATIENCE_S, max_bytes=1000)
    assert told == {"method": "GET", "path": "/scope", "http_version": "1.1", "query": "a=b"}
    for path, most in (("/none", 1000), ("/scope", 10), ("/large", 1000)):
        with pytest.raises(ValueError, match="did not answer with JSON"):
            get_json(url, path, trusted, timeout_s=PATIENCE_S, max_bytes=most)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_whose_orchestrator_is_away_is_told_as_what_it_is(status: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                body = b"<html>Bad Gateway</html>"
                head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OSError, match=rf"{url} is a proxy, .* not answer \({status}\)") as why:
            get_json(url, "/health", (), timeout_s=PATIENCE_S, max_bytes=1000)
        thread.join()
        assert meaning_of(why.value) == str(why.value)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://[fe80::1%eth0]:7001", "[fe80::1]:7001"),
        ("https://[fe80::1%3]", "[fe80::1]"),
        ("http://[fd00::1]:7001", "[fd00::1]:7001"),
        ("http://pi.local:7001", "pi.local:7001"),
    ],
)
def test_it_is_asked_for_the_host_that_the_other_side_knows(url: str, host: str) -> None:
    assert asked_host(url) == host
    assert host_of(host) is not None


def test_an_answer_that_dribbles_has_no_more_time_than_any_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def dribble() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
                while True:
                    connection.sendall(b" ")
                    time.sleep(0.05)

        thread = threading.Thread(target=dribble)
        thread.start()
        url, begun = f"http://127.0.0.1:{server.getsockname()[1]}", time.monotonic()
        with pytest.raises(TimeoutError):
            get_json(url, "/health", (), timeout_s=0.5, max_bytes=60_000)
        assert time.monotonic() - begun < PATIENCE_S / 2
        thread.join(PATIENCE_S)


def test_nobody_there_is_an_error() -> None:
    for url in ("http://127.0.0.1:1", "https://127.0.0.1:1", "https://127.0.0.1:1/x"):
        with pytest.raises(OSError, match="refused"):
            connect_to(url, (), timeout_s=PATIENCE_S)
