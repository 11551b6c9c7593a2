"""Requests that mean no good, at the doors of language models: each is told in the door's form."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import pytest
import zstandard

from bench.processes import child_of
from d8mesh.apps.orchestrators import ask
from d8mesh.http.codings import MAX_DECODED_BYTES
from d8mesh.http.routes import MAX_BODY_BYTES, SMALL_BODY_BYTES
from tests.doors.llm_mesh import CHAT, LlmMesh, llm_mesh, machine
from tests.security.door_cases import DOORS, DoorCase, check_form
from tests.security.raw_http import RawHttp, Told, head

MESSAGES: Final = [{"role": "user", "content": "hello"}]
LARGE_BYTES: Final = 300_000_000


#: Those at which a chat can be asked.
CHATTING: Final = DOORS[:3]
each_door = pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
each_chat = pytest.mark.parametrize("door", CHATTING, ids=lambda door: door.name)


class Caller:
    """Sends bytes as they are, and sees what they changed."""

    def __init__(self, mesh: LlmMesh) -> None:
        self._mesh = mesh
        self._http = RawHttp(urlsplit(mesh.url).port or 0)

    def connect(self) -> socket.socket:
        return self._http.connect()

    def say(self, *parts: bytes) -> Told:
        """Send these on a connection of their own; return the first answer of it."""
        return self._http.say(*parts)

    def ask(self, door: DoorCase, body: bytes, *more: str, method: str = "POST") -> Told:
        """Send a request to a door, with a body and headers."""
        lines = (*more, f"Content-Length: {len(body)}")
        return self.say(head(method, door.path, *lines), body)

    def memory_bytes(self) -> int:
        """Return what the web process has in memory."""
        return child_of(self._mesh.running.orchestrator.process.pid, "_web").rss_bytes()

    def refusals(self) -> dict[str, int]:
        return dict(ask(self._mesh.url, "/health")["rejected"]["rest"])

    def tasks(self) -> int:
        return len(ask(self._mesh.url, "/api/tasks?limit=1000")["tasks"])

    @contextlib.contextmanager
    def refused(self, code: str) -> Iterator[None]:
        """See that one more is refused for this, nothing else, and that no task is made."""
        before, tasks = self.refusals(), self.tasks()
        yield
        now = self.refusals()
        assert {
            name: n - before.get(name, 0) for name, n in now.items() if n != before.get(name)
        } == {code: 1}
        assert self.tasks() == tasks


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    with llm_mesh(machine()) as made:
        yield made


@pytest.fixture
def caller(mesh: LlmMesh) -> Caller:
    return Caller(mesh)


@each_chat
@pytest.mark.parametrize(
    "kind", ["", "application/x-www-form-urlencoded", "text/plain; charset=latin1", "a/b", "\xff"]
)
def test_a_chat_is_taken_whatever_its_media_type(caller: Caller, door: DoorCase, kind: str) -> None:
    lines = [f"Content-Type: {kind}"] if kind else []
    told = caller.ask(door, json.dumps(door.asked()).encode(), *lines)
    assert told.status == 200, told


@each_chat
def test_a_chat_is_taken_in_chunks_and_compressed(caller: Caller, door: DoorCase) -> None:
    body = json.dumps(door.asked()).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    assert caller.say(head("POST", door.path, "Transfer-Encoding: chunked"), chunks).status == 200
    assert caller.ask(door, gzip.compress(body), "Content-Encoding: gzip").status == 200
    assert caller.ask(door, zstandard.compress(body), "Content-Encoding: zstd").status == 200


@each_chat
def test_a_chat_that_waits_until_its_body_is_wanted_is_told_so(
    caller: Caller, door: DoorCase
) -> None:
    body = json.dumps(door.asked()).encode()
    with caller.connect() as connection:
        lines = (f"Content-Length: {len(body)}", "Expect: 100-continue")
        connection.sendall(head("POST", door.path, *lines))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")


@each_chat
@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "nothing:1b", "model": "%s", %s}',
        b'{"model": "%s", "user": "half \\ud83d a pair", %s}',
        b'{"model": "%s", "unknown": null, "user": null, "stream": null, %s}',
    ],
    ids=["a key twice", "half a surrogate pair", "null"],
)
def test_what_other_servers_let_pass_passes(caller: Caller, door: DoorCase, body: bytes) -> None:
    rest = json.dumps({"messages": MESSAGES, "max_tokens": 5, "stream": False})[1:-1]
    assert caller.ask(door, body % (CHAT.encode(), rest.encode())).status == 200


STRANGERS: Final = {
    "a foreign host": ("http.host", 403, "evil.example", ()),
    "no good host": ("http.bad_request", 400, "a b", ()),
    "no host": ("http.bad_request", 400, None, ()),
    "a page": ("http.origin", 403, "localhost", ("Origin: http://evil.example",)),
    "a page in a sandbox": ("http.origin", 403, "localhost", ("Origin: null",)),
    "like ours": ("http.origin", 403, "localhost", ("Origin: http://localhost.evil.example",)),
    "a picture": ("http.origin", 403, "localhost", ("Sec-Fetch-Site: cross-site",)),
    "a neighbour's": ("http.origin", 403, "localhost", ("Sec-Fetch-Site: same-site",)),
}


@each_door
@pytest.mark.parametrize("who", STRANGERS)
@pytest.mark.parametrize("method", ["POST", "OPTIONS", "GET"])
def test_strangers_and_foreign_pages_are_refused_before_their_body_has_come(
    caller: Caller, door: DoorCase, method: str, who: str
) -> None:
    code, status, host, lines = STRANGERS[who]
    with caller.refused(code):
        told = caller.say(head(method, door.path, "Content-Length: 1000", *lines, host=host))
    check_form(told, door, status)


@each_door
@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "x"])
def test_a_coding_that_is_not_known_is_refused(caller: Caller, door: DoorCase, coding: str) -> None:
    with caller.refused("http.media_type"):
        check_form(caller.ask(door, b"{}", f"Content-Encoding: {coding}"), door, 415)


@each_door
def test_an_address_in_between_counts_for_nothing(caller: Caller, door: DoorCase) -> None:
    lines = ("X-Forwarded-For: 8.8.8.8", "X-Forwarded-Host: evil.example", "Forwarded: for=8.8.8.8")
    told = caller.say(head("GET", door.nowhere, *lines))
    check_form(told, door, 404)


@each_door
@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (
            b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "http.bad_request",
        ),
        (b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400, "http.bad_request"),
        (b"Content-Length: +10\r\n\r\n{}", 400, "http.bad_request"),
        (b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, "http.bad_request"),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "http.bad_request"),
        (b"X: y\n\r\n", 400, "http.bad_request"),
        (b"X: \x00\r\n\r\n", 400, "http.bad_request"),
        (b"Host: other\r\n\r\n", 400, "http.bad_request"),
        (b"X: " + b"y" * 20_000 + b"\r\n\r\n", 431, "http.headers_too_large"),
    ],
)
def test_what_can_be_read_in_two_ways_is_told_in_the_doors_form(
    caller: Caller, door: DoorCase, content: bytes, status: int, code: str
) -> None:
    begun = f"POST {door.path} HTTP/1.1\r\nHost: localhost\r\n".encode()
    with caller.refused(code):
        told = caller.say(begun + content)
    check_form(told, door, status)
    assert "Connection: close" in told.head


@each_door
def test_a_long_address_and_a_path_that_is_not_there_are_told_so(
    caller: Caller, door: DoorCase
) -> None:
    with caller.refused("http.url_too_long"):
        check_form(caller.say(head("GET", f"{door.path}/{'x' * 5000}")), door, 414)
    with caller.refused("http.url_too_long"):
        check_form(caller.say(head("GET", f"{door.path}?{'x' * 5000}")), door, 414)
    with caller.refused("http.not_found"):
        check_form(caller.say(head("GET", door.nowhere)), door, 404)
    with caller.refused("http.method"):
        told = caller.say(head("PATCH", door.path))
    check_form(told, door, 405)
    assert "\r\nAllow: " in told.head
    assert "POST" in told.head


@each_door
def test_a_head_of_what_is_not_there_has_no_body(caller: Caller, door: DoorCase) -> None:
    told = caller.say(head("HEAD", door.nowhere))
    assert (told.status, told.body) == (404, b"")


@each_door
@pytest.mark.parametrize("how", ["declared", "declared, and waits", "chunked"])
def test_a_body_of_300_mb_is_refused_unread(caller: Caller, door: DoorCase, how: str) -> None:
    part = b" " * 1_000_000
    lines, parts = [f"Content-Length: {LARGE_BYTES}"], [part] * (LARGE_BYTES // len(part))
    if how == "declared, and waits":
        lines, parts = [*lines, "Expect: 100-continue"], []
    if how == "chunked":
        lines, parts = ["Transfer-Encoding: chunked"], [b"%x\r\n%b\r\n" % (len(part), part)] * 300
    before_bytes = caller.memory_bytes()
    with caller.refused("http.too_large"):
        told = caller.say(head("POST", door.path, *lines), *parts)
    check_form(told, door, 413)
    assert "Connection: close" in told.head
    # What comes then is thrown away for a while, so that who sends it sees the answer.
    kept_bytes = MAX_BODY_BYTES if how == "chunked" else 0
    assert caller.memory_bytes() - before_bytes < 2 * kept_bytes + 10_000_000


@each_chat
def test_a_small_body_that_becomes_a_large_one_is_refused(caller: Caller, door: DoorCase) -> None:
    bomb = gzip.compress(bytes(MAX_DECODED_BYTES * 10), 9)
    with caller.refused("http.too_large"):
        check_form(caller.ask(door, bomb, "Content-Encoding: gzip"), door, 413)
    with caller.refused("http.bad_request"):
        check_form(caller.ask(door, b"no gzip", "Content-Encoding: gzip"), door, 400)


@each_door
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"{} {}",
        b"\xff\xfe{\x00}\x00",
        b'{"model": NaN}',
        b'{"model": "m:1b", "seed": 1e999}',
        b'{"model": ' + b"9" * 100_000 + b"}",
        b"[" * 10_000 + b"]" * 10_000,
        b'{"model": ' + b'{"a": ' * 10_000 + b"1" + b"}" * 10_001,
        b"{" + b",".join(b'"%d": 1' % n for n in range(600_000)) + b"}",
    ],
    ids=lambda body: repr(body[:16]),
)
def test_what_is_no_good_json_is_a_bad_request(caller: Caller, door: DoorCase, body: bytes) -> None:
    before = caller.tasks()
    told = caller.ask(door, body)
    is_large = door.name == "batches" and len(body) > SMALL_BODY_BYTES
    check_form(told, door, 413 if is_large else 400)
    assert caller.tasks() == before


@each_door
@pytest.mark.parametrize(
    "model",
    [
        "../../etc/passwd",
        "http://evil.example/m",
        "-rm",
        "m" * 10_000,
        "a\x00b",
        "\x1b[31m",
        "",
        " ",
    ],
    ids=lambda model: repr(model[:12]),
)
def test_a_name_that_no_model_can_have_is_refused_before_there_is_a_task(
    caller: Caller, door: DoorCase, model: str
) -> None:
    before = caller.tasks()
    told = caller.ask(door, json.dumps(door.asked() | {"model": model}).encode())
    check_form(told, door, told.status)
    assert told.status in (400, 404)
    assert caller.tasks() == before


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../api/tasks",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/files/..%2f..%2fjournal.db",
        "/v1/files/%2e%2e/content",
        "/v1/files/file-%00/content",
        "/v1/batches/..%5c..%5cx",
        "/api/blobs/sha256:..%2f..%2fetc",
        "/v1/models/%00",
        "/v1/models/%ff%fe",
        "//v1//models",
        "/v1//models",
        "/api/tags/",
        "/api/Tags",
        "/console",
        "/v1/console?__debugger__=yes&cmd=resource&f=style.css",
        "/api/chat?__debugger__=yes&cmd=paste",
    ],
)
def test_odd_paths_lead_nowhere(caller: Caller, path: str) -> None:
    told = caller.say(head("GET", path))
    assert told.status in (400, 404, 405) or path.startswith("/api/tags"), told
    assert b"Traceback" not in told.body
    assert told.status == 200 or "error" in told.json


def test_a_refusal_to_a_page_that_may_ask_can_be_read_there(caller: Caller) -> None:
    page = "Origin: http://localhost:3000"
    for sent in (
        head("GET", "/v1/nowhere", page),
        head("POST", "/api/chat", page, "Content-Length: 99999999999"),
        head("POST", "/v1/messages", page, "X: " + "y" * 20_000),
        head("PATCH", "/v1/chat/completions", page),
    ):
        told = caller.say(sent)
        assert told.status >= 400
        assert "\r\nAccess-Control-Allow-Origin: http://localhost:3000" in told.head
