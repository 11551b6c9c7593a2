"""One request and its answer: how the body is fetched, how the answer is framed, who leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.http.served import PATIENCE_S, Served, get, served

POST = b"POST /body HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"


@pytest.fixture
def here() -> Iterator[Served]:
    with served() as found:
        yield found


def test_the_body_is_asked_for_when_it_is_wanted(here: Served) -> None:
    head = b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    with here.connect() as asking:
        asking.sendall(POST + head)
        assert asking.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        asking.sendall(b"hello")
        assert asking.recv(1000).endswith(b"hello")
    assert b"100 Continue" not in here.say(POST.replace(b"/body", b"/scope") + head)


def test_an_answer_before_the_body_has_come_ends_the_connection(here: Served) -> None:
    head = b"POST /scope HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"
    answer = here.say(head + b"x" * 3_000_000)
    assert b"200 OK" in answer
    assert b"Connection: close" in answer


def test_an_answer_of_unknown_length_is_sent_in_chunks(here: Served) -> None:
    assert here.say(get("/parts")).endswith(b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    old = here.say(b"GET /parts HTTP/1.0\r\n\r\n")
    assert old.endswith(b"\r\n\r\n{}")
    assert b"chunked" not in old


def test_a_head_has_no_body(here: Served) -> None:
    for path in (b"/scope", b"/parts"):
        answer = here.say(b"HEAD " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n")


def test_an_answer_has_a_date_and_is_whole(here: Served) -> None:
    head, _, body = here.say(get("/scope")).partition(b"\r\n\r\n")
    assert b"\r\nDate: " in head
    assert json.loads(body)["path"] == "/scope"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", ["/raise", "/split"])
def test_an_application_that_fails_is_a_500_without_a_word_of_it(here: Served, path: str) -> None:
    answer = here.say(get(path))
    assert b" 500 " in answer.partition(b"\r\n")[0]
    assert b"asked to" not in answer


def test_whoever_waits_is_cancelled_when_the_caller_leaves(here: Served) -> None:
    with here.connect() as caller:
        caller.sendall(get("/wait"))
        assert here.waiting.acquire(timeout=PATIENCE_S)
    assert here.is_gone.wait(PATIENCE_S)


def test_a_call_that_runs_on_is_told_that_the_caller_has_left(here: Served) -> None:
    with here.connect() as caller:
        caller.sendall(get("/keep"))
        assert here.waiting.acquire(timeout=PATIENCE_S)
        assert not here.is_gone.is_set()
    assert here.is_gone.wait(PATIENCE_S)
