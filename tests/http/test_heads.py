"""What a head may say; the parser's own strictness is seen in `test_connection`."""

from __future__ import annotations

import pytest

from d8mesh.http.answers import Refusal
from d8mesh.http.heads import check_head, head_of, path_and_query

CHUNKED = (b"transfer-encoding", b"Chunked")


@pytest.mark.parametrize(
    ("version", "headers", "is_good"),
    [
        ("1.1", [(b"host", b"h")], True),
        ("1.0", [], True),
        ("2.0", [], False),
        ("0.9", [], False),
        ("1.1", [(b"host", b"h"), (b"host", b"h")], False),
        ("1.1", [CHUNKED], True),
        ("1.0", [CHUNKED], False),
        ("1.1", [(b"transfer-encoding", b"gzip, chunked")], False),
    ],
)
def test_what_may_be_read_in_two_ways_is_refused(
    version: str, headers: list[tuple[bytes, bytes]], is_good: bool
) -> None:
    if is_good:
        check_head(version, headers)
    else:
        with pytest.raises(Refusal):
            check_head(version, headers)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (b"/a/b", ("/a/b", b"")),
        (b"/a?b=%20?c#d", ("/a", b"b=%20?c")),
        (b"/%C3%B1%FF", ("/ñ\ufffd", b"")),
        (b"//evil.com/a", ("//evil.com/a", b"")),
        (b"http://h:80/a?b", ("/a", b"b")),
        (b"http://h", ("/", b"")),
    ],
)
def test_an_address_has_a_path_and_a_query(url: bytes, found: tuple[str, bytes]) -> None:
    assert path_and_query(url) == found


@pytest.mark.parametrize("url", [b"h:80", b"a b"])
def test_an_address_without_a_path_is_refused(url: bytes) -> None:
    with pytest.raises(Refusal):
        path_and_query(url)


def test_a_header_cannot_make_another() -> None:
    assert head_of(200, b"now", [(b"A", b"b")]).endswith(b"Date: now\r\nA: b\r\n\r\n")
    for value in (b"a\r\nb: c", b"a\nb: c", b"a\rb"):
        with pytest.raises(ValueError, match="line break"):
            head_of(200, b"now", [(b"A", value)])
