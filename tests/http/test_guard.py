"""Foreign peers, hosts and pages are refused before anything is read."""

from __future__ import annotations

import io
import socket
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from d8mesh.config import Config
from d8mesh.http import guard
from d8mesh.http.answers import Refusal
from d8mesh.http.guard import Guard, Rejections, body_of

OWN = "127.0.0.1:7001"


def request(
    *, host: str = OWN, peer: str = "192.168.1.9", method: str = "GET", **headers: str
) -> Request:
    environ = EnvironBuilder(path="/health", method=method).get_environ()
    environ |= {"REMOTE_ADDR": peer, "HTTP_HOST": host}
    environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    return Request(environ)


def code_of(asked: Request, **settings: Any) -> str:
    try:
        Guard(Config(**settings)).check(asked)
    except Refusal as refusal:
        return refusal.code
    return ""


@pytest.mark.parametrize(
    "peer", ["127.0.0.1", "10.1.2.3", "172.16.0.9", "192.168.1.9", "169.254.3.4", "::1", "fe80::1"]
)
def test_peers_of_private_networks_pass(peer: str) -> None:
    assert code_of(request(peer=peer)) == ""


@pytest.mark.parametrize("peer", ["8.8.8.8", "100.64.1.1", "2001:db8::1", "169.254.169.254", ""])
def test_other_peers_are_refused(peer: str) -> None:
    assert code_of(request(peer=peer)) == "http.peer"


def test_a_forwarded_address_counts_for_nothing() -> None:
    assert code_of(request(peer="8.8.8.8", x_forwarded_for="10.0.0.1")) == "http.peer"
    assert code_of(request(x_forwarded_for="8.8.8.8", x_forwarded_host="evil.com")) == ""


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:7001",
        "127.0.0.1:1",
        "[::1]:7001",
        "orchestrator",
        "D8-BOX:80",
        socket.gethostname(),
        f"{socket.gethostname().partition('.')[0]}.local",
        "192.168.77.9:7001",
        "[fd00::77]:7001",
        "host.docker.internal:7001",
    ],
)
def test_our_own_names_pass(host: str) -> None:
    assert code_of(request(host=host)) == ""


@pytest.mark.parametrize("host", ["evil.com", "evil.com:7001", "8.8.8.8", "localhost.evil.com"])
def test_foreign_hosts_are_refused(host: str) -> None:
    assert code_of(request(host=host)) == "http.host"


@pytest.mark.parametrize("host", ["", "a b", "x:99999", "[::1", "x:y", "a/b", "user@x", "a..b"])
def test_malformed_hosts_are_bad_requests(host: str) -> None:
    assert code_of(request(host=host)) == "http.bad_request"


def test_http_1_0_needs_no_host() -> None:
    for protocol, code in (("HTTP/1.0", ""), ("HTTP/1.1", "http.bad_request")):
        asked = request()
        del asked.environ["HTTP_HOST"]
        asked.environ["SERVER_PROTOCOL"] = protocol
        assert code_of(asked) == code
    asked = request(host="evil.com")
    asked.environ["SERVER_PROTOCOL"] = "HTTP/1.0"
    assert code_of(asked) == "http.host"


def test_hosts_can_be_allowed_exactly() -> None:
    allowed = ("d8.example.org",)
    assert code_of(request(host="d8.example.org:7001"), allowed_hosts=allowed) == ""
    assert code_of(request(host="x.d8.example.org"), allowed_hosts=allowed) == "http.host"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "origin", ["null", "http://evil.com", "http://localhost:3000", "https://", "file://", "x"]
)
def test_pages_from_elsewhere_are_refused_for_every_method(method: str, origin: str) -> None:
    assert code_of(request(method=method, origin=origin)) == "http.origin"


def test_cross_site_requests_are_refused_and_our_own_page_is_not() -> None:
    assert code_of(request(sec_fetch_site="cross-site")) == "http.origin"
    assert code_of(request(origin=f"http://{OWN}", sec_fetch_site="same-origin")) == ""


def test_a_key_is_asked_for_off_loopback() -> None:
    key = "0123456789abcdef"
    assert code_of(request(), mesh_key=key) == "access.token"
    assert code_of(request(authorization="Bearer wrong"), mesh_key=key) == "access.token"
    assert code_of(request(authorization=f"Bearer {key}"), mesh_key=key) == ""
    assert code_of(request(peer="127.0.0.1"), mesh_key=key) == ""
    assert code_of(request(peer="8.8.8.8"), mesh_key=key, allow_public=True) == "access.token"
    assert code_of(request(peer="8.8.8.8"), allow_public=True) == "http.peer"


def post(body: bytes, **environ: Any) -> Request:
    made = EnvironBuilder(method="POST", input_stream=io.BytesIO(body)).get_environ()
    made |= {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(body))}
    return Request(made | environ)


def test_a_body_is_json_or_empty() -> None:
    assert body_of(post(b"{}")) == b"{}"
    assert body_of(post(b"{}", CONTENT_TYPE="application/json; charset=utf-8")) == b"{}"
    assert body_of(post(b"", CONTENT_TYPE="")) == b""
    for kind in ("", "text/plain", "multipart/form-data; boundary=x", "application/x-www-form"):
        with pytest.raises(Refusal) as caught:
            body_of(post(b"{}", CONTENT_TYPE=kind))
        assert caught.value.code == "http.media_type"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"CONTENT_TYPE": ""}, "the body has no Content-Type, expected application/json"),
        ({"CONTENT_TYPE": "text/plain"}, "the body is 'text/plain', expected application/json"),
        ({"CONTENT_TYPE": "application/json; charset=latin1"}, "charset is 'latin1'"),
        ({"HTTP_CONTENT_ENCODING": "gzip"}, "Content-Encoding is 'gzip', expected none"),
    ],
)
def test_a_body_in_other_clothes_is_told_what_it_is(environ: dict[str, str], said: str) -> None:
    with pytest.raises(Refusal, match=said) as caught:
        body_of(post(b"{}", **environ))
    assert caught.value.code == "http.media_type"


def test_names_of_utf_8_and_of_no_encoding_pass() -> None:
    for charset in ("UTF-8", '"utf-8"', "utf8", "us-ascii"):
        assert body_of(post(b"{}", CONTENT_TYPE=f"application/json; charset={charset}"))
    assert body_of(post(b"{}", HTTP_CONTENT_ENCODING="identity"))


def test_a_declared_body_over_the_limit_is_not_read() -> None:
    asked = post(b"", CONTENT_LENGTH=str(guard.MAX_BODY_BYTES + 1))
    with pytest.raises(Refusal) as caught:
        body_of(asked)
    assert caught.value.code == "http.too_large"


def test_an_undeclared_body_over_the_limit_is_not_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard, "MAX_BODY_BYTES", 1000)
    asked = post(b"x" * 100_000)
    del asked.environ["CONTENT_LENGTH"]
    asked.environ["wsgi.input_terminated"] = True
    with pytest.raises(Refusal) as caught:
        body_of(asked)
    assert caught.value.code == "http.too_large"


def test_rejections_are_counted_by_reason() -> None:
    rejections = Rejections()
    rejections.add("http.host")
    rejections.add("http.host")
    assert rejections.counts() == {"http.host": 2}
