"""One question over HTTP: what goes out, what comes back, and that its connection ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.exchange import HttpQuestion, answer_to
from d8mesh.backends.openai.endpoint import Whole
from d8mesh.backends.streaming import AnswerReader, parts
from d8mesh.errors import BackendAnswerError, BackendError, BackendUnavailableError

PATIENCE_S = 30
OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def service(answer: bytes) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Answer one request with these bytes; what came is returned when the caller has gone."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        came = bytearray()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                while b"\r\n\r\n" not in came:
                    came.extend(connection.recv(65536))
                with suppress(OSError):  # the caller may leave before all of it has gone
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while more := connection.recv(65536):
                        came.extend(more)

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()

        def request() -> bytes:
            serving.join(PATIENCE_S)
            assert not serving.is_alive()  # else the connection was left open
            return bytes(came)

        yield f"http://127.0.0.1:{listening.getsockname()[1]}", request


def asked(question: HttpQuestion) -> Any:
    def lines(reader: AnswerReader[Whole]) -> Iterator[bytes]:
        with answer_to(question, reader) as response:
            yield b"".join(response.chunks())

    run = ChatRun(is_cancelled=lambda: False, deadline_s=PATIENCE_S)
    reader = AnswerReader("It", question.url, lines=lines, piece_of=Whole)
    with closing(parts(reader, run)) as coming:
        return next(coming).answer


def test_the_body_goes_as_json_and_the_connection_ends_with_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with service(OK + b"Content-Length: 4\r\n\r\n[17]") as (url, request):
        question = HttpQuestion(url=url + "/a?b=c", body={"ü": 1}, headers={"X-Own": "yes"})
        assert asked(question) == [17]
        head, _, body = request().partition(b"\r\n\r\n")
    assert head.startswith(b"POST /a?b=c HTTP/1.1\r\n")
    assert b"X-Own: yes" in head
    assert b"Accept-Encoding: identity" in head
    assert b"authorization" not in head.lower()
    assert body == '{"ü":1}'.encode()


def test_without_a_body_nothing_is_said_of_one() -> None:
    with service(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n1\r\n7\r\n0\r\n\r\n") as (
        url,
        request,
    ):
        assert asked(HttpQuestion(url=url + "/x", method="GET")) == 17
        assert b"Content-Type" not in request()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"no HTTP\r\n\r\n",
        OK,
        OK + b"Content-Length: 40\r\n\r\n[17]",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\n[17]\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"X: y\r\n" * 500,
        OK + b"X: " + b"y" * 100_000,
    ],
)
def test_an_answer_that_breaks_off_or_is_none_fails_the_answer(answer: bytes) -> None:
    with service(answer) as (url, _), pytest.raises(BackendAnswerError, match="It "):
        asked(HttpQuestion(url=url + "/x", body={}))


def test_a_refusal_is_read_though_the_question_was_not_taken_yet() -> None:
    answer = b'HTTP/1.1 413 Too Large\r\nContent-Length: 15\r\n\r\n{"error":"long"}'
    with service(answer) as (url, _), pytest.raises(BackendError, match="HTTP 413"):
        asked(HttpQuestion(url=url + "/x", body={"text": "x" * 10_000_000}))


@pytest.mark.parametrize("host", ["127.0.0.1:1", "a..b", "x" * 70 + ".lan"])
def test_where_nobody_is_the_service_is_not_there(host: str) -> None:
    with pytest.raises(BackendUnavailableError, match="It does not answer at http://"):
        asked(HttpQuestion(url=f"http://{host}/x", body={}))


def test_an_answer_that_ends_with_its_connection_can_be_ended_too() -> None:
    """Such a connection is closed for us once its answer has begun, but goes on underneath."""
    has_ended = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, suppress(ConnectionResetError):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n1\n")
                while connection.recv(65536):
                    pass
            has_ended.set()

        threading.Thread(target=serve, daemon=True).start()
        question = HttpQuestion(url=f"http://127.0.0.1:{listening.getsockname()[1]}/", body={})
        has_begun = threading.Event()

        def lines(reader: AnswerReader[Whole]) -> Iterator[bytes]:
            with answer_to(question, reader) as response:
                for chunk in response.chunks():
                    has_begun.set()
                    yield chunk

        def more_to_come(answer: Any) -> Whole:
            return Whole(answer, ending=False)

        reader = AnswerReader("It", question.url, lines=lines, piece_of=more_to_come)
        reading = threading.Thread(target=lambda: _read_in_vain(reader), daemon=True)
        reading.start()
        assert has_begun.wait(PATIENCE_S)
        reader.end()
        reading.join(PATIENCE_S)
        assert has_ended.wait(PATIENCE_S)


def _read_in_vain(reader: AnswerReader[Whole]) -> None:
    with suppress(BackendError):
        list(reader.parts())


def test_a_question_goes_over_the_connection_of_the_last_and_never_twice() -> None:
    """The third comes to one that leaves without an answer: it may have been begun there."""
    came: list[tuple[int, bytes]] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        answer = OK + b"Content-Length: 4\r\n\r\n[17]"

        def serve() -> None:
            for number, answers in enumerate((2, 1)):
                connection, _ = listening.accept()
                with connection:
                    for _ in range(answers):
                        came.append((number, connection.recv(65536)))
                        connection.sendall(answer)
                    came.append((number, connection.recv(65536)))

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"

        def ask(number: int) -> Any:
            return asked(HttpQuestion(url=url + str(number), body={}, may_be_kept=True))

        assert [ask(1), ask(2)] == [[17], [17]]
        with pytest.raises(BackendAnswerError):
            ask(3)
        assert ask(4) == [17]
        serving.join(PATIENCE_S)  # what nobody uses is closed
        assert not serving.is_alive()
    asked_for = [(number, head.split(b" ")[1]) for number, head in came if head]
    assert asked_for == [(0, b"/1"), (0, b"/2"), (0, b"/3"), (1, b"/4")]
