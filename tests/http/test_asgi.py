"""Headers by name."""

from __future__ import annotations

from d8mesh.http.asgi import fields_of


def test_what_comes_twice_is_joined() -> None:
    headers = [(b"host", b"h"), (b"origin", b"a"), (b"x", b"\xf1"), (b"origin", b"b")]
    assert fields_of({"headers": headers}) == {"host": "h", "origin": "a,b", "x": "ñ"}
