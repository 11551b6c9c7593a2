"""A request as the calls of a door see it."""

from __future__ import annotations

from typing import Any

from d8mesh.http.request import Request


def request(**more: Any) -> Request:
    scope = {
        "http_version": "1.1",
        "method": "GET",
        "path": "/things",
        "query_string": b"",
        "headers": [],
        "client": ("10.0.0.1", 5),
    }
    return Request(scope | more)


def test_it_has_a_caller_a_query_and_headers() -> None:
    asked = request(query_string=b"a=1&b=%C3%B1", headers=[(b"idempotency-key", b"k")])
    assert (asked.remote_addr, asked.method, asked.path) == ("10.0.0.1", "GET", "/things")
    assert (asked.args["a"], asked.args["b"]) == ("1", "ñ")
    assert asked.headers["Idempotency-Key"] == asked.fields["idempotency-key"] == "k"
    assert (asked.body, asked.value) == (b"", None)


def test_a_caller_without_an_address_has_an_empty_one() -> None:
    assert request(client=None).remote_addr == ""
