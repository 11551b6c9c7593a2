"""Bad input over HTTP, sent as bytes: the answer, exactly one count, and all goes on beside it.

The numbers are those of the list of bad inputs in `docs/SECURITY.md`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from d8mesh.http.routes import MAX_BODY_BYTES
from tests.doors.llm_mesh import CHAT, machine
from tests.security.abuse import Abused, abused_mesh
from tests.security.door_cases import ALL_DOORS, DOORS, REST, DoorCase, check_form
from tests.security.raw_http import RawHttp, Told, head

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
TASK: Final = {"type": "echo", "data": {"text": "x"}}
each_door = pytest.mark.parametrize("door", ALL_DOORS, ids=lambda door: door.name)
each_llm_door = pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
#: Larger than any body, and than what a process may keep of one.
LARGE_BYTES: Final = 100_000_000


@pytest.fixture(scope="module")
def abused() -> Iterator[Abused]:
    with abused_mesh(machine()) as made:
        yield made


def refused_all(abused: Abused, code: str, count: int) -> contextlib.AbstractContextManager[None]:
    return abused.refused("rest", code, times=count)


# ----------------------------------------------------------------- who asks, and from where


@each_door
@pytest.mark.parametrize(
    ("host", "code", "status"),
    [
        ("evil.example", "http.host", 403),
        ("localhost.evil.example:7001", "http.host", 403),
        ("8.8.8.8", "http.host", 403),
        ("a b", "http.bad_request", 400),
        ("", "http.bad_request", 400),
        ("[::1", "http.bad_request", 400),
        (None, "http.bad_request", 400),
    ],
    ids=str,
)
def test_02_a_foreign_or_malformed_host_is_refused_for_every_method(
    abused: Abused, door: DoorCase, host: str | None, code: str, status: int
) -> None:
    with refused_all(abused, code, len(METHODS)):
        for method in METHODS:
            told = abused.http.ask(method, door.path, host=host)
            assert told.status == status, (method, told)
            if method != "HEAD":
                check_form(told, door, status)


@each_door
@pytest.mark.parametrize(
    "line",
    [
        "Origin: http://evil.example",
        "Origin: null",
        "Origin: http://localhost.evil.example",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
        "Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: cross-site;x",
        "Sec-Fetch-Site: cross-origin",
    ],
)
def test_03_a_page_from_elsewhere_is_refused_for_every_method(
    abused: Abused, door: DoorCase, line: str
) -> None:
    with refused_all(abused, "http.origin", len(METHODS)):
        for method in METHODS:
            told = abused.http.ask(method, door.path, b"", line)
            assert told.status == 403, (method, told)


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
     "application/json; charset=utf-16", "application/jsonx", "application/msgpack"],
)  # fmt: skip
def test_04_a_body_that_is_no_json_is_no_media_type_of_the_rest(abused: Abused, kind: str) -> None:
    lines = [f"Content-Type: {kind}"] if kind else []
    with abused.refused("rest", "http.media_type"):
        told = abused.http.ask("POST", REST.path, json.dumps(TASK).encode(), *lines)
        check_form(told, REST, 415)
    assert told.field("accept") == "application/json"


def test_04_an_empty_body_is_good_where_none_is_needed(abused: Abused) -> None:
    sent = abused.http.post("/api/tasks/submit", {"type": "nobody", "data": {}})
    task_id = sent.json["task_id"]
    with abused.refused_as({}):
        assert abused.http.ask("POST", f"/api/tasks/{task_id}/cancel").status == 200


# ----------------------------------------------------------------- how large, how written


@each_door
@pytest.mark.parametrize("how", ["declared", "chunked", "declared, and waits"])
def test_05_a_body_over_the_limit_is_refused_and_never_kept(
    abused: Abused, door: DoorCase, how: str
) -> None:
    part = b" " * 1_000_000
    parts = [part] * (LARGE_BYTES // len(part))
    length = "Transfer-Encoding: chunked" if how == "chunked" else f"Content-Length: {LARGE_BYTES}"
    lines = ["Content-Type: application/json", length]
    if how == "chunked":
        parts = [b"%x\r\n%b\r\n" % (len(part), part)] * len(parts)
    if how == "declared, and waits":
        lines, parts = [*lines, "Expect: 100-continue"], []
    before_bytes = abused.node("_web").rss_bytes()
    with abused.refused("rest", "http.too_large"):
        told = abused.http.say(head("POST", door.path, *lines), *parts)
        check_form(told, door, 413)
    assert told.field("connection") == "close"
    kept_bytes = MAX_BODY_BYTES if how == "chunked" else 0
    assert abused.node("_web").rss_bytes() - before_bytes < 2 * kept_bytes + 10_000_000


#: What can be read in two ways, after a request's line and its Host.
SMUGGLED: Final = {
    "both lengths": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length twice": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a sign": b"Content-Length: +10\r\n\r\n{}",
    "below zero": b"Content-Length: -1\r\n\r\n",
    "hexadecimal": b"Content-Length: 0x2\r\n\r\n{}",
    "a list of lengths": b"Content-Length: 2, 2\r\n\r\n{}",
    "a huge length": b"Content-Length: 99999999999999999999999\r\n\r\n",
    "coded otherwise": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a blank before the colon": b"Content-Length : 2\r\n\r\n{}",
    "a folded line": b"X: a\r\n b\r\n\r\n",
    "a bare LF": b"X: y\n\r\n",
    "a bare CR": b"X: y\rZ: a\r\n\r\n",
    "NUL": b"X: \x00\r\n\r\n",
    "no name": b": x\r\n\r\n",
    "two hosts": b"Host: other\r\n\r\n",
    "no chunk": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@each_door
@pytest.mark.parametrize("what", SMUGGLED)
def test_06_what_can_be_read_in_two_ways_is_refused_and_the_connection_closed(
    abused: Abused, door: DoorCase, what: str
) -> None:
    begun = f"POST {door.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    second = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"  # never answered
    with abused.refused("rest", "http.bad_request"):
        told = abused.http.say(begun.encode() + SMUGGLED[what] + second)
        check_form(told, door, told.status)
    assert told.status == 400
    assert told.field("connection") == "close"
    assert told.body.count(b"HTTP/1.1 ") == 0


@each_door
def test_07_huge_headers_and_long_addresses_are_refused(abused: Abused, door: DoorCase) -> None:
    many = [f"X-{n}: {'y' * 100}" for n in range(300)]
    with refused_all(abused, "http.headers_too_large", 2):
        for lines in ([f"X: {'y' * 20_000}"], many):
            check_form(abused.http.ask("POST", door.path, b"", *lines), door, 431)
    with refused_all(abused, "http.url_too_long", 3):
        for path in (f"{door.path}/{'x' * 5000}", f"{door.path}?{'x' * 5000}"):
            check_form(abused.http.ask("GET", path), door, 414)
        told = abused.http.ask("GET", f"{door.path}/{'x' * 60_000}")
        assert told.status == 414


# ----------------------------------------------------------------- JSON, and what it says

DEEP: Final = b"[" * 10_000 + b"]" * 10_000
BAD_JSON: Final = {
    "nothing": b" ",
    "depth 10,000": b'{"type": "echo", "data": {"a": ' + DEEP + b"}}",
    "depth 10,000 of objects": b'{"a": ' * 10_000 + b"1" + b"}" * 10_000,
    "a million keys": b"{" + b",".join(b'"%d": 1' % n for n in range(1_000_000)) + b"}",
    "NaN": b'{"type": "echo", "data": {"a": NaN}}',
    "Infinity": b'{"type": "echo", "data": {"a": -Infinity}}',
    "beyond a float": b'{"type": "echo", "data": {"a": 1e999}}',
    "100,000 digits": b'{"type": "echo", "data": {"a": ' + b"9" * 100_000 + b"}}",
    "trailing bytes": b'{"type": "echo", "data": {}} {}',
    "another encoding": '{"type": "echo", "data": {}}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + b"{}",
    "no UTF-8": b'{"type": "\xff\xfe", "data": {}}',
    "half": b'{"type": "echo", "data"',
    "no object": b"[1]",
    "null": b"null",
}
#: That the documented REST refuses, and what other servers let pass.
ALSO_BAD_AT_REST: Final = {
    "a key twice": b'{"type": "echo", "type": "echo", "data": {}}',
    "half a surrogate pair": b'{"type": "echo", "data": {"a": "\\ud83d"}}',
}


@pytest.mark.parametrize("what", [*BAD_JSON, *ALSO_BAD_AT_REST])
def test_09_bad_json_is_a_bad_request_of_the_rest(abused: Abused, what: str) -> None:
    body = (BAD_JSON | ALSO_BAD_AT_REST)[what]
    with abused.refused("rest", "task.invalid"):
        told = abused.http.ask("POST", REST.path, body, "Content-Type: application/json")
        check_form(told, REST, 400)
    assert told.json["code"] == "task.invalid"


@each_llm_door
@pytest.mark.parametrize("what", BAD_JSON)
def test_09_bad_json_is_a_bad_request_of_every_door(
    abused: Abused, door: DoorCase, what: str
) -> None:
    body = BAD_JSON[what]
    is_large = door.name == "batches" and what == "a million keys"
    code, status = ("http.too_large", 413) if is_large else ("task.invalid", 400)
    with abused.refused("rest", code):
        told = abused.http.ask("POST", door.path, body, "Content-Type: application/json")
        check_form(told, door, status)


WRONG_FIELDS: Final[list[tuple[str, dict[str, Any], str]]] = [
    ("/api/tasks/submit", {"data": {}}, "type"),
    ("/api/tasks/submit", {"type": "echo"}, "data"),
    ("/api/tasks/submit", {"type": 5, "data": {}}, "type"),
    ("/api/tasks/submit", {"type": "", "data": {}}, "type"),
    ("/api/tasks/submit", {"type": "x" * 129, "data": {}}, "type"),
    ("/api/tasks/submit", {"type": "echo", "data": []}, "data"),
    ("/api/tasks/submit", {**TASK, "priority": 0}, "priority"),
    ("/api/tasks/submit", {**TASK, "priority": 11}, "priority"),
    ("/api/tasks/submit", {**TASK, "priority": True}, "priority"),
    ("/api/tasks/submit", {**TASK, "priority": 1.5}, "priority"),
    ("/api/tasks/submit", {**TASK, "deadline_s": -1}, "deadline_s"),
    ("/api/tasks/submit", {**TASK, "max_attempts": 101}, "max_attempts"),
    ("/api/tasks/submit", {**TASK, "run_at": 1e12}, "run_at"),
    ("/api/tasks/submit", {**TASK, "fenced": "yes"}, "fenced"),
    ("/api/tasks/submit_batch", {"tasks": []}, "tasks"),
    ("/api/tasks/submit_batch", {"tasks": {}}, "tasks"),
    ("/api/tasks/submit_batch", {"tasks": [TASK, {"type": "echo"}]}, "tasks[1].data"),
    ("/api/workers/register", {"worker_id": "w"}, "worker_type"),
    ("/api/workers/register", {"worker_id": "a/b", "worker_type": "t", "capabilities": {}},
     "worker_id"),
    ("/api/workers/unregister", {}, "worker_id"),
    ("/v1/chat/completions", {"model": CHAT}, "messages"),
    ("/v1/chat/completions", {"model": 5, "messages": [{"role": "user", "content": "x"}]},
     "model"),
    ("/v1/embeddings", {"model": CHAT, "input": [1, 2]}, "input"),
    ("/v1/batches", {"endpoint": "/v1/embeddings", "completion_window": "24h"}, "input_file_id"),
    ("/v1/messages", {"model": CHAT, "messages": []}, "max_tokens"),
    ("/api/chat", {"model": CHAT, "messages": "x"}, "messages"),
    ("/api/embed", {"model": CHAT, "input": "x", "dimensions": -1}, "dimensions"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "field"), WRONG_FIELDS)
def test_10_a_wrong_field_is_named(
    abused: Abused, path: str, body: dict[str, Any], field: str
) -> None:
    with abused.refused("rest", "task.invalid"):
        told = abused.http.post(path, body)
        assert told.status == 400, told
    assert field in told.body.decode()


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/tasks?limit=0", "limit"),
        ("/api/tasks?limit=1001", "limit"),
        ("/api/tasks?limit=-1", "limit"),
        ("/api/tasks?limit=1e2", "limit"),
        ("/api/tasks?limit=%D9%A1", "limit"),
        ("/api/tasks?order=sideways", "order"),
        ("/api/tasks?state=odd", "state"),
        (f"/api/tasks?cursor={'x' * 200}", "cursor"),
        (f"/api/tasks?type={'x' * 200}", "type"),
        ("/api/tasks/x/wait?timeout_s=nan", "timeout_s"),
        ("/api/tasks/x/wait?timeout_s=61", "timeout_s"),
        ("/api/tasks/status/x?full=perhaps", "full"),
        ("/v1/files?limit=0", "limit"),
        ("/v1/batches?order=sideways", "order"),
    ],
)
def test_10_a_wrong_parameter_is_named(abused: Abused, path: str, field: str) -> None:
    with abused.refused_once():
        told = abused.http.ask("GET", path)
        assert told.status == 400, told
    assert field in told.body.decode()


# ----------------------------------------------------------------- paths


@each_door
def test_11_an_unknown_path_is_not_found_and_a_wrong_method_told_which_are_right(
    abused: Abused, door: DoorCase
) -> None:
    with abused.refused("rest", "http.not_found"):
        check_form(abused.http.ask("GET", door.nowhere), door, 404)
    wrong = ("PUT", "PATCH", "TRACE", "PROPFIND")
    with refused_all(abused, "http.method", len(wrong)):
        for method in wrong:
            told = abused.http.ask(method, door.path)
            check_form(told, door, 405)
            assert "POST" in (told.field("allow") or "")


ODD_PATHS: Final = [
    "/api/../../etc/passwd",
    "/api/tasks/status/../../../etc/passwd",
    "/api/tasks/status/..%2f..%2fetc%2fpasswd",
    "/api/tasks/status/%2e%2e%2fjournal.db",
    "/api/tasks/status/..%5c..%5cjournal.db",
    "/api/tasks/status/%00",
    "/api/tasks/status/%ff%fe",
    "/api/tasks/status/" + "x" * 200,
    "/api/tasks/status/%F0%9F%92%A9",
    "/api/tasks/../status/x",
    "//api//tasks//status//x",
    "/api/Tasks",
    "/api/workers/..%2f..%2fx/tasks",
    "/api/workers/" + "y" * 200 + "/tasks",
    "/v1/models/..%2f..%2fetc%2fpasswd",
    "/v1/models/%00",
    "/v1/files/..%2f..%2fjournal.db",
    "/v1/files/%2e%2e/content",
    "/v1/files/file-%00/content",
    "/v1/batches/..%5c..%5cx",
    "/api/blobs/sha256:..%2f..%2fetc",
    "/static/../orchestrator/journal.db",
    "/.env",
    "/.git/config",
]


@pytest.mark.parametrize("path", ODD_PATHS)
def test_12_traversal_and_odd_ids_are_not_found(abused: Abused, path: str) -> None:
    with abused.refused_once():
        told = abused.http.ask("GET", path)
        assert told.status == 404, told
    assert told.json["error"]
    _shows_nothing(told)


@pytest.mark.parametrize(
    "path",
    [
        "/console",
        "/v1/console?__debugger__=yes&cmd=resource&f=style.css",
        "/?__debugger__=yes&cmd=resource&f=debugger.js",
        "/api/chat?__debugger__=yes&cmd=paste",
        "/debug/pprof/",
        "/api/tasks?__debugger__=yes&cmd=printpin&s=x",
        "/__debug__/",
        "/_debugbar/open",
    ],
)
def test_17_a_debugger_is_not_there(abused: Abused, path: str) -> None:
    before, tasks = abused.rejected(), abused.tasks()
    told = abused.http.ask("GET", path)
    # A path that is there knows no such parameter.
    is_there = path.startswith(("/?", "/api/tasks?"))
    assert told.status == (200 if is_there else 405 if path.startswith("/api/chat") else 404)
    _shows_nothing(told)
    abused.goes_on()
    assert sum((abused.rejected() - before).values()) == (0 if is_there else 1)
    assert not abused.tasks() - tasks


def _shows_nothing(told: Told) -> None:
    for secret in (b"Traceback", b".py", b"root:", b"SECRET", b"EVALEX", b"SQLite format"):
        assert secret not in told.body


# ----------------------------------------------------------------- what is asked twice, or named


def test_13_a_key_used_again_with_another_body_is_a_conflict(abused: Abused) -> None:
    key = "Idempotency-Key: test-13"
    first = abused.http.post("/api/tasks/submit", TASK, key)
    assert first.status == 201
    other = {**TASK, "data": {"text": "y"}}
    with abused.refused_as({("rest", "key.conflict"): 1, ("broker", "key.conflict"): 1}):
        told = abused.http.post("/api/tasks/submit", other, key)
        check_form(told, REST, 409)
    again = abused.http.post("/api/tasks/submit", TASK, key)
    assert (again.status, again.json["task_id"]) == (200, first.json["task_id"])


@pytest.mark.parametrize("key", ["", "x" * 129, "a\tb", "\xe9"], ids=repr)
def test_13_a_key_that_cannot_be_one_is_a_bad_request(abused: Abused, key: str) -> None:
    with abused.refused("rest", "task.invalid"):
        told = abused.http.post("/api/tasks/submit", TASK, f"Idempotency-Key: {key}")
        check_form(told, REST, 400)


NAMES: Final = {
    "traversal": "../../x",
    "absolute": "/etc/passwd",
    "an address": "http://evil.example/m",
    "an option": "-rm",
    "10 KB": "m" * 10_000,
    "NUL": "a\x00b",
    "ANSI": "\x1b[31mred",
    "a line": "m\nFROM x",
    "blanks": "a b",
    "no ASCII": "mödel",
}


@each_llm_door
@pytest.mark.parametrize("what", NAMES)
def test_15_a_name_that_no_model_can_have_is_refused_before_there_is_a_task(
    abused: Abused, door: DoorCase, what: str
) -> None:
    with abused.refused_once():
        told = abused.http.post(door.path, door.asked() | {"model": NAMES[what]})
        check_form(told, door, told.status)
    assert told.status in (400, 404)


@pytest.mark.parametrize("what", NAMES)
def test_15_a_name_that_no_model_can_have_is_refused_in_a_task(abused: Abused, what: str) -> None:
    data = {"messages": [{"role": "user", "content": "x"}], "model": NAMES[what]}
    with abused.refused("rest", "task.invalid"):
        told = abused.http.post("/api/tasks/submit", {"type": "agent_action", "data": data})
        check_form(told, REST, 400)
    assert "model" in told.json["error"]


def test_16_what_a_stranger_says_of_a_proxy_is_ignored(abused: Abused) -> None:
    lines = (
        "X-Forwarded-For: 8.8.8.8",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Proto: https",
        "X-Real-IP: 8.8.8.8",
        "Forwarded: for=8.8.8.8;host=evil.example",
    )
    http: RawHttp = abused.http
    with abused.refused_as({}):
        assert http.ask("GET", "/api/tasks", b"", *lines).status == 200
    with abused.refused("rest", "http.host"):
        told = http.ask(
            "GET", "/api/tasks", b"", "X-Forwarded-Host: localhost", host="evil.example"
        )
        assert told.status == 403


def test_a_refusal_in_the_form_of_another_door_is_counted_too(abused: Abused) -> None:
    line = "anthropic-version: 2023-06-01"
    with abused.refused("rest", "model.unknown"):
        told = abused.http.ask("GET", "/v1/models/nothing:1b", b"", line)
        assert (told.status, told.json["type"]) == (404, "error")
    with abused.refused("rest", "task.invalid"):
        assert abused.http.ask("GET", "/v1/models?limit=0", b"", line).status == 400
