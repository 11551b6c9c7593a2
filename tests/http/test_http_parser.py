"""Requests that one may read in two ways are refused, and so is what is too large."""

from __future__ import annotations

import json
from typing import Any

import pytest
from waitress.adjustments import Adjustments

from d8mesh.http.http_parser import MAX_CHUNK_LINE_BYTES, MAX_HEAD_BYTES, Parser, refusal_body

LIMIT = 2000
LARGE_LIMIT = 5000
POST = b"POST /x HTTP/1.1\r\nHost: h\r\n"


def parsed(*parts: bytes) -> Any:
    parser = Parser(Adjustments(max_request_body_size=LIMIT), {"/large": LARGE_LIMIT})
    for part in parts:
        while part and not parser.completed:
            part = part[parser.received(part) :]
    return parser


def test_a_request_is_read_with_its_body() -> None:
    parser = parsed(POST, b"Content-Length: 5\r\n", b"\r\nhe", b"llo")
    assert parser.completed
    assert parser.error is None
    assert parser.get_body_stream().read() == b"hello"


def test_a_chunked_body_is_put_together() -> None:
    parser = parsed(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert parser.error is None
    assert parser.get_body_stream().read() == b"hello"


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        POST + b"Content-Length: 2, 2\r\n\r\n{}",
        POST + b"Content-Length: +2\r\n\r\n{}",
        POST + b"Content-Length: -2\r\n\r\n{}",
        POST + b"Content-Length: 2 2\r\n\r\n{}",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * (MAX_CHUNK_LINE_BYTES + 1),
        b"POST /x HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /x HTTP/1.1\nHost: h\n\n",
        b"GET /x HTTP/1.1\r\nHost: h\nX: y\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: h\x00\r\n\r\n",
        b"GET /\x00x HTTP/1.1\r\nHost: h\r\n\r\n",
        POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"GET /x HTTP/1.1\r\n Host: h\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET /x HTTP/2.0\r\nHost: h\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"GET /x\r\n\r\n",
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(request_bytes: bytes) -> None:
    parser = parsed(request_bytes)
    assert parser.completed
    code, body = refusal_body(parser.error)
    assert code == "http.bad_request"
    assert json.loads(body)["code"] == code


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (POST + b"Content-Length: 2001\r\n\r\n", "http.too_large"),
        (
            POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"64\r\n" + b"x" * 100 + b"\r\n",
            "",
        ),
        (
            POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"7d2\r\n" + b"x" * 2002,
            "http.too_large",
        ),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", "http.url_too_long"),
        (b"GET /" + b"a" * 5000, "http.url_too_long"),
        (
            b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
            "http.headers_too_large",
        ),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_kept(request_bytes: bytes, code: str) -> None:
    parser = parsed(request_bytes)
    assert parser.completed == bool(code)
    assert code == (refusal_body(parser.error)[0] if parser.error else "")


@pytest.mark.parametrize(("path", "is_taken"), [(b"/large/x", True), (b"/x", False)])
def test_some_paths_take_larger_bodies(path: bytes, is_taken: bool) -> None:
    body = b"x" * LARGE_LIMIT
    head = b"POST " + path + b" HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert (parsed(head, body).error is None) == is_taken


def test_the_body_of_what_is_refused_is_not_asked_for() -> None:
    head = POST + b"Expect: 100-continue\r\n"
    assert parsed(head + b"Content-Length: 5\r\n\r\n").expect_continue
    refused = parsed(head + b"Content-Length: 999999\r\n\r\n")
    assert (refused.completed, refused.expect_continue) == (True, False)


def test_the_limit_itself_is_allowed() -> None:
    body = b"x" * LIMIT
    assert parsed(POST + b"Content-Length: %d\r\n\r\n" % LIMIT, body).error is None
