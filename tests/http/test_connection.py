"""What can be read in two ways, is too large or too slow is refused; the rest is answered."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator

import pytest

from d8mesh.http import connection
from d8mesh.http.connection import MAX_REQUESTS_AHEAD
from d8mesh.http.heads import MAX_HEAD_BYTES
from d8mesh.http.server import DEADLINES_LOOK_S
from tests.http.certified import certified
from tests.http.served import LARGE_BYTES, PATIENCE_S, Served, get, served

POST = b"POST /body HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"


@pytest.fixture(params=["http", "https"])
def here(request: pytest.FixtureRequest) -> Iterator[Served]:
    with served(tls=certified() if request.param == "https" else None) as found:
        yield found


def eventually(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_body_is_read_in_the_pieces_in_which_it_comes(here: Served) -> None:
    answer = here.say(POST, b"Content-Length: 5\r\n", b"\r\nhe", b"llo")
    assert answer.endswith(b"\r\n\r\nhello")


def test_a_body_in_chunks_is_put_together(here: Served) -> None:
    chunks = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: x\r\n\r\n"
    answer = here.say(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert answer.endswith(b"\r\n\r\nhello world")


def test_a_body_larger_than_what_is_read_ahead_is_whole(here: Served) -> None:
    body = b"abcdefgh" * 500_000
    answer = here.say(POST + b"Content-Length: %d\r\n\r\n" % len(body), body)
    assert answer.partition(b"\r\n\r\n")[2] == body


def test_a_body_waits_outside_while_the_application_does(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BODY_S", 0.2)
    monkeypatch.setattr(connection, "BODY_BYTES_PER_S", 10**9)
    size = 30_000_000
    with here.connect() as caller:
        caller.sendall(POST.replace(b"/body", b"/late") + b"Content-Length: %d\r\n\r\n" % size)
        assert here.waiting.acquire(timeout=PATIENCE_S)
        caller.settimeout(1.5)
        with pytest.raises(TimeoutError):
            caller.sendall(b"x" * size)
        assert here.refused.noted == []  # it is not the caller who is slow


def test_a_body_that_nobody_asked_for_is_kept_as_little_of_as_can_be(here: Served) -> None:
    with here.connect() as caller:
        caller.sendall(b"GET /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 900000\r\n\r\n")
        assert here.waiting.acquire(timeout=PATIENCE_S)
        caller.sendall(b"x" * 400_000)
        (found,) = here.server._connections
        eventually(lambda: bool(found._paused_at))
        assert len(found._asked[0].unread) <= 131_072


@pytest.mark.filterwarnings("ignore")
def test_an_answer_that_breaks_off_is_not_taken_for_whole(here: Served) -> None:
    chunked = POST.replace(b"/body", b"/begun") + b"Transfer-Encoding: chunked\r\n\r\n"
    for rest in (b"0\r\n\r\n", b"no chunk"):
        with here.connect() as caller:
            caller.sendall(chunked)
            answer = caller.recv(1000)
            assert b"200 OK" in answer
            caller.sendall(rest)
            with contextlib.suppress(ConnectionResetError):
                while part := caller.recv(1000):
                    answer += part
        assert not answer.endswith(b"0\r\n\r\n")


def test_each_byte_may_have_a_chunk_of_its_own(here: Served) -> None:
    chunks = b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
    answer = here.say(POST + b"Transfer-Encoding: chunked\r\n\r\n", chunks)
    assert answer.endswith(b"x" * 20_000)


def test_what_is_asked_for_is_told_to_the_application(here: Served) -> None:
    path = b"GET /scope?a=%20b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    status, body = here.told(path)
    assert status == 200
    assert body == {"method": "GET", "path": "/scope", "http_version": "1.1", "query": "a=%20b"}
    assert here.told(path.replace(b"/scope", b"http://h/s%63ope"))[1]["path"] == "/scope"


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        POST + b"Content-Length: 2, 2\r\n\r\n{}",
        POST + b"Content-Length: +2\r\n\r\n{}",
        POST + b"Content-Length: -2\r\n\r\n{}",
        POST + b"Content-Length: 2 2\r\n\r\n{}",
        POST + b"Content-Length:\r\n\r\n{}",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\nhel\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 1025,
        b"POST /body HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\x00\r\n\r\n",
        b"GET /\x00x HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
        POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: y\r\n z\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"GET /x\r\n\r\n",
        b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(here: Served, request_bytes: bytes) -> None:
    status, body = here.told(request_bytes)
    assert (status, body["code"]) == (400, "http.bad_request")
    assert here.refused.noted == [("http.bad_request", "127.0.0.1")]


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414, "http.url_too_long"),
        (b"GET /" + b"a" * 5000, 414, "http.url_too_long"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES, 431, "http.headers_too_large"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431, "http.headers_too_large"),
        (
            b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * MAX_HEAD_BYTES + b"\r\n",
            431,
            "http.headers_too_large",
        ),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431, "http.headers_too_large"),
        (
            POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 200_000,
            400,
            "http.bad_request",
        ),
        (
            POST
            + b"Transfer-Encoding: chunked\r\n\r\n186a0\r\n"
            + b"x" * 100_000
            + b"\r\n0\r\nX: "
            + b"a" * 200_000,
            400,
            "http.bad_request",
        ),
        (
            POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 200_000,
            400,
            "http.bad_request",
        ),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_kept(
    here: Served, request_bytes: bytes, status: int, code: str
) -> None:
    found, body = here.told(request_bytes)
    assert (found, body["code"]) == (status, code)


PAGE = b"Origin: http://localhost:3000\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "place"),
    [
        (b"GET /a%20b?c HTTP/1.1\r\nX: " + b"a" * 20_000, ("/a b", None)),
        (b"GET /a HTTP/1.1\r\n" + PAGE + b"X: y\n", ("/a", "http://localhost:3000")),
        (b"GET /a HTTP/1.1\r\n" + PAGE + PAGE + b"X: y\n", ("/a", None)),
        (b"GET /" + b"a" * 5000, ("/" + "a" * 5000, None)),
        (POST + PAGE + CHUNKED + b"\r\nzz\r\n", ("/body", "http://localhost:3000")),
        (POST + b"Upgrade: x\r\nConnection: upgrade\r\n" + CHUNKED + b"\r\nzz", ("/body", None)),
        (b"GET /\xc3\xb1 HTTP/1.1\r\nX: y\n", ("", None)),
        (b"GET h:x HTTP/1.1\r\nX: y\n", ("", None)),
        (b"nothing at all\r\n\r\n", ("", None)),
        (b"GET /scope HTTP/1.1\r\nHost: h\r\n\r\nnothing\r\n\r\n", ("", None)),
    ],
)
def test_what_is_refused_is_told_as_its_path_asks_for(
    here: Served, request_bytes: bytes, place: tuple[str, str | None]
) -> None:
    here.say(request_bytes)
    assert here.places == [place]


def test_an_answer_without_content_has_neither_a_length_nor_chunks(here: Served) -> None:
    answer = here.say(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n" + get("/scope"))
    first, _, rest = answer.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 204 No Content\r\n")
    assert b"Transfer-Encoding" not in first
    assert b"Connection" not in first
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")


def test_two_requests_in_one_packet_are_both_answered_in_order(here: Served) -> None:
    first = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none"
    answer = here.say(first + POST + b"Content-Length: 3\r\n\r\ntwo")
    assert answer.count(b"200 OK") == 2
    assert answer.index(b"one") < answer.index(b"two")


def test_the_head_of_an_answer_goes_out_with_the_first_part_of_it(here: Served) -> None:
    with here.connect() as caller:
        caller.sendall(b"GET /parts HTTP/1.1\r\nHost: x\r\n\r\n")
        assert caller.recv(1000).endswith(b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n")


def test_the_head_of_an_answer_does_not_wait_for_a_body_that_comes_later(here: Served) -> None:
    with here.connect() as caller:
        caller.sendall(b"POST /begun HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
        assert b"200 OK" in caller.recv(1000)


def test_no_part_of_an_answer_waits_until_the_one_before_is_acknowledged(here: Served) -> None:
    with here.connect() as caller:
        caller.sendall(b"GET /scope HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in caller.recv(1000)
        (found,) = here.server._connections
        ours = found._transport.get_extra_info("socket")
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_follows_a_good_request_is_refused_after_its_answer(here: Served) -> None:
    answer = here.say(b"GET /scope HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/3.0\r\n\r\n")
    assert answer.index(b"200 OK") < answer.index(b"400 Bad Request")


def test_what_follows_a_request_that_ends_the_connection_is_no_refusal(here: Served) -> None:
    last = b"GET /scope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    status, *_ = here.say(last + b"nonsense\r\n\r\n").partition(b"\r\n")
    assert status == b"HTTP/1.1 200 OK"
    assert here.refused.noted == []


def test_too_many_requests_ahead_of_their_answers_are_refused(here: Served) -> None:
    answer = here.say(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * (MAX_REQUESTS_AHEAD + 10))
    assert (answer.count(b"200 OK"), answer.count(b" 429 ")) == (MAX_REQUESTS_AHEAD + 1, 1)


def test_an_upgrade_is_not_done_and_the_request_is_answered(here: Served) -> None:
    upgrade = b"Connection: upgrade\r\nUpgrade: h2c\r\n"
    first = b"POST /body HTTP/1.1\r\nHost: x\r\n" + upgrade + b"Content-Length: 3\r\n\r\none"
    answer = here.say(first + get("/scope"))
    assert answer.count(b"200 OK") == 2


def test_slow_headers_are_closed(here: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADERS_S", 0.3)
    with here.connect() as silent, here.connect() as slow, here.connect() as second:
        slow.sendall(b"GET /scope HTTP/1.1\r\nHo")
        second.sendall(b"GET /scope HTTP/1.1\r\nHost: x\r\n\r\nGET /")
        assert b"200 OK" in second.recv(1000)
        for each in (silent, slow, second):
            assert each.recv(100) == b""
    assert [code for code, _ in here.refused.noted] == ["http.timeout"] * 2


def test_an_idle_connection_is_closed(here: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.3)
    with here.connect() as idle:
        idle.sendall(b"GET /scope HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in idle.recv(1000)
        assert idle.recv(100) == b""
    assert here.refused.noted == []


def test_a_body_that_dribbles_is_closed(here: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_S", 0.3)
    with here.connect() as slow:
        slow.sendall(POST + b"Content-Length: 900\r\n\r\nab")
        assert slow.recv(100) == b""
    assert [code for code, _ in here.refused.noted] == ["http.timeout"]


def test_an_answer_that_nobody_reads_is_given_up(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STUCK_S", 0.5)
    with here.connect() as deaf:
        deaf.sendall(get("/write"))
        assert here.is_gone.wait(PATIENCE_S)


def test_an_answer_that_is_read_a_drop_at_a_time_is_given_up(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STUCK_S", 0.6)
    monkeypatch.setattr(connection, "STUCK_BYTES", 10**9)
    with here.connect() as slow:
        slow.sendall(get("/write"))
        while not here.is_gone.wait(0.05):
            slow.recv(10_000)


def test_a_refusal_is_read_by_whoever_goes_on_sending(here: Served) -> None:
    status, body = here.told(b"GET / HTTP/1.1\r\nX: " + b"a" * 3_000_000)
    assert (status, body["code"]) == (431, "http.headers_too_large")


def test_a_refusal_is_read_by_whoever_sends_for_longer_than_we_linger(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 2 * DEADLINES_LOOK_S)
    with here.connect() as slow:
        slow.sendall(b"POST /scope HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
        until = time.monotonic() + 5 * DEADLINES_LOOK_S
        while time.monotonic() < until:
            slow.sendall(b"x" * 1000)
            time.sleep(DEADLINES_LOOK_S / 10)
        assert slow.recv(1000).startswith(b"HTTP/1.1 200 ")
        eventually(lambda: not here.server._connections)


def test_whoever_is_refused_and_sends_forever_is_closed(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BODY_S", DEADLINES_LOOK_S)
    with here.connect() as stays, contextlib.suppress(ConnectionError, ssl.SSLError):
        stays.sendall(b"GET / HTTP/3.0\r\n\r\n")
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            stays.sendall(b"x" * 1000)
            time.sleep(DEADLINES_LOOK_S / 10)
        pytest.fail("it may still send")


def test_whoever_is_refused_and_does_not_leave_is_closed(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.2)
    with here.connect() as stays:
        stays.sendall(b"GET / HTTP/3.0\r\n\r\n")
        assert stays.recv(100).startswith(b"HTTP/1.1 400 ")
        eventually(lambda: not here.server._connections)


def test_the_body_is_asked_for_when_it_is_wanted(here: Served) -> None:
    head = b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    with here.connect() as asking:
        asking.sendall(POST + head)
        assert asking.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        asking.sendall(b"hello")
        assert asking.recv(1000).endswith(b"hello")
    assert b"100 Continue" not in here.say(POST.replace(b"/body", b"/scope") + head)
    with here.connect() as shouting:
        shouting.sendall(POST + head.replace(b"100-c", b"100-C"))
        assert shouting.recv(100).startswith(b"HTTP/1.1 100 ")


def test_an_answer_before_the_body_has_come_ends_the_connection(here: Served) -> None:
    head = b"POST /scope HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"
    answer = here.say(head + b"x" * 3_000_000)
    assert b"200 OK" in answer
    assert b"Connection: close" in answer


def test_a_connection_that_is_said_to_be_closed_is_closed(here: Served) -> None:
    with here.connect() as caller:
        caller.sendall(b"POST /ended HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        assert b"Connection: close" in caller.recv(1000)
        caller.sendall(b"end")
        while caller.recv(1000):
            pass


def test_an_old_client_that_asks_for_it_keeps_its_connection(here: Served) -> None:
    with here.connect() as caller:
        for _ in range(2):
            caller.sendall(b"GET /scope HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
            assert b"Connection: keep-alive\r\n" in caller.recv(1000)
    for path in (b"/scope", b"/parts HTTP/1.0\r\nConnection: keep-alive\r\nX:"):
        assert b"Connection: close\r\n" in here.say(b"GET " + path + b" HTTP/1.0\r\n\r\n")


def test_who_reads_slowly_gets_all_of_an_answer_before_the_body_has_come(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.01)
    here.server._sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        slow.settimeout(PATIENCE_S)
        slow.connect(("127.0.0.1", here.port))
        reading = here.secured(slow)
        reading.sendall(b"POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        time.sleep(2 * DEADLINES_LOOK_S)
        answer = b""
        while part := reading.recv(65_536):
            answer += part
        reading.close()
    assert answer.count(b"x") >= LARGE_BYTES


def test_a_request_that_waits_for_the_answer_before_has_no_more_time_for_it(here: Served) -> None:
    with here.connect() as caller:
        ahead = b"GET /soon HTTP/1.1\r\nHost: x\r\n\r\n"
        caller.sendall(ahead + POST + b"Content-Length: 5\r\n\r\n")
        assert b"200 OK" in caller.recv(1000)
        (found,) = here.server._connections
        eventually(lambda: not found._paused_at)
        assert found._since <= here.server.loop.time()


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
