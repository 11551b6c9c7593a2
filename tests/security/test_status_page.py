"""The worker's status page, abused: 405 for a POST, 429 for a flood, and it always answers."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest

from d8mesh.processes.status import BURST
from tests.end_to_end.processes import until
from tests.security.abuse import Abused, abused_mesh
from tests.security.raw_http import RawHttp, head

METHODS: Final = ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
#: The page, of a worker that is well or has no language model.
TOLD: Final = (200, 503)
#: Requests of a flood: many more than one address may send at once.
FLOOD: Final = 3 * BURST
#: Connections that bring nothing, or a part of a head.
DRIBBLERS: Final = 300


@pytest.fixture(scope="module")
def abused() -> Iterator[Abused]:
    with abused_mesh() as made:
        yield made


@pytest.fixture
def page(abused: Abused) -> RawHttp:
    """The page of the worker; nobody asks it but the test."""
    (worker,) = abused.http.ask("GET", "/api/workers/list").json["workers"]
    found = RawHttp(worker["status_port"])
    until(lambda: found.ask("GET", "/health").status in TOLD, "it is not flooded", 20.0)
    return found


def rejected(page: RawHttp) -> Counter[str]:
    found: list[Counter[str]] = []

    def is_told() -> bool:
        told = page.ask("GET", "/health")
        if told.status in TOLD:
            found.append(Counter(told.json["rejected"]))
        return bool(found)

    until(is_told, "it is not flooded", 20.0)
    return found[-1]


def test_18_nothing_but_a_look_is_taken(abused: Abused, page: RawHttp) -> None:
    before = rejected(page)
    for method in METHODS:
        told = page.ask(method, "/health", b"x" if method == "POST" else b"")
        assert (told.status, told.json["code"]) == (405, "http.method")
        assert told.field("Allow") == "GET, HEAD"
    assert rejected(page) - before == Counter({"http.method": len(METHODS)})
    abused.goes_on()


@pytest.mark.parametrize(
    ("path", "line", "status", "code"),
    [
        ("/", "X: y", 404, "http.not_found"),
        ("/health?debugger=yes", "Origin: http://evil.example", 403, "http.origin"),
        ("/console", "X: y", 404, "http.not_found"),
        ("/" + "x" * 9000, "X: y", 414, "http.url_too_long"),
        ("/health", "X: " + "y" * 20_000, 431, "http.headers_too_large"),
        ("/health", "Content-Length: +1", 400, "http.bad_request"),
    ],
)
def test_18_what_is_bad_is_refused_once(
    abused: Abused, page: RawHttp, path: str, line: str, status: int, code: str
) -> None:
    before = rejected(page)
    told = page.ask("GET", path, b"", line)
    assert (told.status, told.json["code"]) == (status, code)
    assert rejected(page) - before == Counter({code: 1})
    abused.goes_on()


def test_18_a_flood_is_told_to_come_again_and_every_request_is_answered(
    abused: Abused, page: RawHttp
) -> None:
    before = rejected(page)
    flood = b"".join(_kept("GET", "/health") for _ in range(FLOOD - 1))
    with page.connect() as connection:
        answers = Counter[bytes]()
        for part in _parts(flood):
            connection.sendall(part)
            answers += _statuses(connection, part.count(b"GET "))
    assert answers.total() == FLOOD - 1
    assert answers[b"200"] + answers[b"503"] >= BURST // 2
    assert answers[b"429"] >= FLOOD - 2 * BURST
    told = page.ask("GET", "/health")
    if told.status == 429:
        assert told.field("Retry-After") == "1"
    until(lambda: page.ask("GET", "/health").status in TOLD, "it answers again", 20.0)
    assert (rejected(page) - before)["access.flood"] >= answers[b"429"]
    abused.goes_on()


def _kept(method: str, path: str) -> bytes:
    return head(method, path).replace(b"Connection: close\r\n", b"")


def _parts(flood: bytes) -> Iterator[bytes]:
    """Yield requests by fifty: as many as may wait for their answers."""
    each = _kept("GET", "/health")
    for at in range(0, len(flood), 50 * len(each)):
        yield flood[at : at + 50 * len(each)]


def _statuses(connection: socket.socket, count: int) -> Counter[bytes]:
    """Read so many answers; return how many of each status."""
    content = b""
    while True:
        heads = content.split(b"HTTP/1.1 ")[1:]
        if len(heads) == count and _is_whole(heads[-1]):
            return Counter(each[:3] for each in heads)
        part = connection.recv(65_536)
        assert part, "it has hung up"
        content += part


def _is_whole(answer: bytes) -> bool:
    begun, end, body = answer.partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1])
        for line in begun.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    ]
    return bool(end) and bool(lengths) and len(body) >= lengths[0]


def test_18_it_answers_beside_hundreds_that_dribble(abused: Abused, page: RawHttp) -> None:
    begun = b"GET /health HTTP/1.1\r\nHost: local"
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(page.connect()) for _ in range(DRIBBLERS)]
        for n, each in enumerate(crowd):
            if n % 2:
                each.sendall(begun)
        for _ in range(5):
            asked = time.monotonic()
            until(lambda: page.ask("GET", "/health").status in TOLD, "a flood before it is over")
            assert time.monotonic() - asked < 5.0
        abused.goes_on()
