"""A service that misbehaves fails one answer with a code, and nothing else."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from d8mesh.backends import answer_clocks, streaming
from d8mesh.backends.backend import ChatRun
from d8mesh.backends.ollama import OllamaBackend
from d8mesh.backends.ollama.bodies import Defaults, Loading, question_of
from d8mesh.backends.ollama.chat import AnswerLines
from d8mesh.backends.ollama.connection import OllamaRequest, asking
from d8mesh.backends.streaming import (
    MAX_LINE_BYTES,
    AnswerReader,
    RefusedAnswer,
    lines_of,
    parts,
    shown,
)
from d8mesh.core.protocol.chat import ChatRequest, FinishReason, Piece
from d8mesh.errors import (
    BackendAnswerError,
    BackendBusyError,
    BackendError,
    BackendMissingError,
    BackendTooLargeError,
    D8Error,
    InvalidTaskError,
    TaskCancelledError,
)
from tests.ollama_server import OllamaServer
from tests.ollama_standin import OllamaStandin

PATIENCE_S = 30
#: Far below what any of the floods would take if it were kept.
MAX_MEMORY_BYTES = 24 * 1024 * 1024


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as running:
        yield running


def asked(server: OllamaServer, request: ChatRequest, model: str) -> AnswerReader[Piece]:
    path, body = question_of(request, Loading(model=model), Defaults())
    return asking(OllamaRequest(url=server.url, path=path, body=body), AnswerLines().piece_of)


def parts_of(server: OllamaServer, *, model: str = "deepseek-r1:8b") -> list[Piece]:
    request = ChatRequest(messages=({"role": "user", "content": "one two"},))
    run = ChatRun(is_cancelled=lambda: False, deadline_s=PATIENCE_S)
    return list(parts(asked(server, request, model), run))


def test_the_last_piece_carries_the_figures(server: OllamaServer) -> None:
    parts = parts_of(server)
    assert "".join(part.text for part in parts) == "You asked: one two"
    ending = parts[-1].ending
    assert ending is not None
    assert ending.usage.total == 18
    assert ending.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("behaviour", "kind", "code"),
    [
        ("busy", BackendBusyError, "backend.busy"),
        ("compressed", BackendAnswerError, "backend.answer"),
        ("cut", BackendAnswerError, "backend.answer"),
        ("deep_json", BackendAnswerError, "backend.answer"),
        ("endless_error", BackendError, "backend.failed"),
        ("endless_line", BackendTooLargeError, "backend.too_large"),
        ("error", BackendError, "backend.failed"),
        ("error_line", BackendError, "backend.failed"),
        ("missing", BackendMissingError, "backend.missing"),
        ("not_json", BackendAnswerError, "backend.answer"),
        ("redirect", BackendAnswerError, "backend.answer"),
        ("wrong_shape", BackendAnswerError, "backend.answer"),
    ],
)
def test_misbehaviour_fails_the_answer_with_a_code_and_takes_no_memory(
    server: OllamaServer, behaviour: str, kind: type[BackendError], code: str
) -> None:
    assert parts_of(server)  # the package is loaded: it is not what is measured
    server.behaviour = behaviour
    tracemalloc.start()
    try:
        with pytest.raises(kind) as caught:
            parts_of(server)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert peak_bytes < MAX_MEMORY_BYTES
    assert not [path for path, _, _ in server.requests if path == "/elsewhere"]
    server.behaviour = "ok"
    assert parts_of(server)[-1].ending


SEPARATORS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\rj\r\nk"


@pytest.mark.parametrize("is_escaped", [True, False])
def test_a_text_may_hold_every_separator_of_lines(server: OllamaServer, is_escaped: bool) -> None:
    server.is_ascii = is_escaped
    server.answer = lambda messages: SEPARATORS
    assert "".join(part.text for part in parts_of(server)) == SEPARATORS


def test_an_answer_cut_anywhere_by_the_network_is_put_together(server: OllamaServer) -> None:
    server.is_ascii, server.write_bytes = False, 3
    server.answer = lambda messages: SEPARATORS
    assert "".join(part.text for part in parts_of(server)) == SEPARATORS


def test_a_long_line_in_the_smallest_pieces_costs_no_more_than_its_length() -> None:
    line = b"x" * (MAX_LINE_BYTES - 1)
    pieces = (line[i : i + 1] for i in range(len(line)))
    started = time.process_time()
    assert list(lines_of("Ollama", [b"a\n\n", *pieces, b"\n", b"b"])) == [b"a", line, b"b"]
    assert time.process_time() - started < 20  # each piece copied anew: minutes


def test_calls_of_tools_thoughts_and_probabilities_come_as_they_were_sent(
    server: OllamaServer,
) -> None:
    call = {"id": "call_1", "function": {"index": 0, "name": "add", "arguments": {"a": [1, None]}}}
    server.extra = {"tool_calls": [call], "thinking": "hm\u2028"}
    server.logprobs = [{"token": "x", "logprob": -0.1, "bytes": [120]}]
    parts = parts_of(server)
    assert [part.tool_calls for part in parts if part.tool_calls] == [(call,)]
    assert "".join(part.thinking for part in parts) == "hm\u2028"
    assert [part.logprobs for part in parts if part.logprobs] == [tuple(server.logprobs)]


@pytest.mark.parametrize(
    "extra",
    [{"tool_calls": "x"}, {"tool_calls": ["x"]}, {"thinking": 1}, {"content": 1}],
)
def test_a_line_of_another_form_fails_the_answer(
    server: OllamaServer, extra: dict[str, Any]
) -> None:
    server.extra = extra
    with pytest.raises(BackendAnswerError, match="not a line of its answers"):
        parts_of(server)


def test_a_model_that_is_gone_is_named(server: OllamaServer) -> None:
    with pytest.raises(BackendError, match="model 'gone:1b' not found"):
        parts_of(server, model="gone:1b")


def test_what_was_ended_before_it_began_asks_nothing_more(server: OllamaServer) -> None:
    server.behaviour = "silent"
    reader = asked(server, ChatRequest(messages=()), "x")
    reader.end(BackendBusyError("too late"))
    reader.end(BackendError("later still"))
    with pytest.raises(BackendBusyError, match="too late"):
        next(reader.parts())


def test_what_a_service_says_is_shown_in_one_bounded_line() -> None:
    assert shown("a\n\x1b[31mred\x00") == "a [31mred"
    assert len(shown("x" * 10_000)) == 300
    assert shown("\n") == "no reason given"


# --- refusals ---------------------------------------------------------------------------


def test_a_service_may_say_itself_what_its_refusals_mean(server: OllamaServer) -> None:
    seen: list[RefusedAnswer] = []

    def refused(refusal: RefusedAnswer) -> D8Error:
        seen.append(refusal)
        return InvalidTaskError("never")

    server.behaviour = "busy"
    request = OllamaRequest(url=server.url, path="/api/chat", body={"model": "x"})
    by_http = asking(request, AnswerLines().piece_of)
    with pytest.raises(BackendBusyError) as caught:
        ending_of(by_http)
    assert caught.value.details == {"status": 503}
    own = AnswerReader(
        "It", server.url, lines=by_http._lines, piece_of=AnswerLines().piece_of, refused=refused
    )
    with pytest.raises(InvalidTaskError, match="never"):
        ending_of(own)
    assert seen[0].status == 503
    assert seen[0].headers["content-type"] == "application/json"
    assert seen[0].reason == "HTTP 503: server busy, please try again"


def ending_of(reader: AnswerReader[Piece]) -> None:
    list(parts(reader, ChatRun(is_cancelled=lambda: False, deadline_s=PATIENCE_S)))


class Unwanted:
    """Becomes so at a moment, and tells who has asked to be told."""

    def __init__(self) -> None:
        self._is_so = threading.Event()
        self._calls: list[Callable[[], None]] = []

    def run(self, **more: Any) -> ChatRun:
        return ChatRun(
            is_cancelled=self._is_so.is_set, on_cancel=self._on, deadline_s=PATIENCE_S, **more
        )

    def _on(self, call: Callable[[], None]) -> Callable[[], None]:
        self._calls.append(call)
        return lambda: self._calls.remove(call)

    def end(self) -> None:
        self._is_so.set()
        for call in list(self._calls):
            call()

    @property
    def is_heard(self) -> bool:
        return bool(self._calls)


@pytest.mark.parametrize("phase", ["prompt", "output"])
def test_who_is_told_of_a_cancel_ends_the_connection_without_looking(
    monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.setattr(answer_clocks, "CLOCK_LOOK_S", float(PATIENCE_S))
    monkeypatch.setattr(streaming, "ANSWER_CLOCKS", answer_clocks.AnswerClocks())
    unwanted = Unwanted()
    pace: dict[str, Any] = (
        {"prompt_tokens_per_s": 0.01} if phase == "prompt" else {"tokens_per_s": 0.5}
    )
    request = ChatRequest(messages=({"role": "user", "content": "say 99 words"},))
    with OllamaStandin(**pace) as standin, ThreadPoolExecutor(1) as pool:
        chat = OllamaBackend(standin.url).chat
        asked = pool.submit(chat, request, unwanted.run())
        standin.wait_until(
            lambda: standin.running > 0 and unwanted.is_heard and _is_in(standin, phase)
        )
        began = time.monotonic()
        unwanted.end()
        with pytest.raises(TaskCancelledError):
            asked.result(PATIENCE_S)
        standin.wait_until(lambda: bool(standin.counters.cancelled))
        assert standin.counters.cancelled[0].at - began < PATIENCE_S / 4
    assert not unwanted.is_heard


def _is_in(standin: OllamaStandin, phase: str) -> bool:
    return phase == "prompt" or standin.counters.tokens > 0
