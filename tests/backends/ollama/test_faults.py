"""Every fault that was seen at real Ollamas is a failure of one attempt, and said to be what it is.

The rows are those of the stand-in's `Kind`; what a pool does then is told by the error's class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.ollama import OllamaBackend
from d8mesh.backends.ollama.faults import failed, refused
from d8mesh.backends.streaming import RefusedAnswer
from d8mesh.core.protocol.chat import ChatRequest, Completion, EmbeddingRequest, FinishReason
from d8mesh.core.protocol.messages import Placement
from d8mesh.errors import (
    BackendAnswerError,
    BackendBusyError,
    BackendDeadlineError,
    BackendError,
    BackendMemoryError,
    BackendStalledError,
    BackendTooLargeError,
    BackendUnavailableError,
    D8Error,
    InvalidTaskError,
    TaskCancelledError,
)
from tests.ollama_server import OllamaServer
from tests.ollama_standin import OllamaStandin
from tests.standin.faults import Kind

PATIENCE_S = 30.0
CHAT = "qwen2.5:3b"
THINKER = "deepseek-r1:8b"
VECTORS = "nomic-embed-text:latest"
RUN = ChatRun(is_cancelled=lambda: False, deadline_s=PATIENCE_S)
QUESTION = ({"role": "user", "content": "say 8 words"},)
QUICK = replace(RUN, first_token_s=0.5, token_gap_s=0.3)


@pytest.fixture
def standin() -> Iterator[OllamaStandin]:
    with OllamaStandin(loaded=[CHAT]) as running:
        yield running


def asked(text: str = "say 8 words", *, model: str = CHAT, **more: object) -> ChatRequest:
    return ChatRequest(
        messages=({"role": "user", "content": text},), model=model, is_model_strict=True, more=more
    )


def chat(standin: OllamaStandin, request: ChatRequest, run: ChatRun = RUN) -> Completion:
    return OllamaBackend(standin.url).chat(request, run)


# --- answers without an end -------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.NO_DONE])
def test_an_answer_that_ends_without_done_is_a_failure_though_text_came(
    standin: OllamaStandin, kind: Kind
) -> None:
    standin.fault(kind, after=3)
    heard: list[str] = []
    run = replace(RUN, on_piece=lambda piece: heard.append(piece.text))
    with pytest.raises(BackendAnswerError):
        chat(standin, asked(), run)
    assert len(heard) == 3


def test_an_error_inside_a_good_status_is_a_failure_with_its_words(
    standin: OllamaStandin,
) -> None:
    standin.fault(Kind.ERROR_LINE)
    with pytest.raises(BackendError, match="runner has unexpectedly stopped"):
        chat(standin, asked())


def test_a_page_of_somebody_else_is_no_answer(standin: OllamaStandin) -> None:
    standin.fault(Kind.NOT_JSON)
    with pytest.raises(BackendAnswerError):
        chat(standin, asked())


# --- silence ----------------------------------------------------------------------------


def test_accepted_and_silent_ends_by_the_clock_of_the_first_token(standin: OllamaStandin) -> None:
    standin.fault(Kind.SILENT)
    started = time.monotonic()
    with pytest.raises(BackendStalledError, match=r"nothing for 0\.5 s"):
        chat(standin, asked(), QUICK)
    assert time.monotonic() - started < 5
    standin.wait_until(lambda: standin.counters.open == 0)


def test_silence_in_the_middle_ends_by_the_clock_between_tokens(standin: OllamaStandin) -> None:
    standin.fault(Kind.STALL, after=3)
    with pytest.raises(BackendStalledError, match=r"nothing for 0\.3 s"):
        chat(standin, asked(), QUICK)
    standin.wait_until(lambda: bool(standin.counters.cancelled))


def test_while_a_tool_may_be_called_silence_between_tokens_is_allowed_as_before_the_first(
    standin: OllamaStandin,
) -> None:
    standin.fault(Kind.STALL, after=1)
    tool = {"type": "function", "function": {"name": "add"}}
    with pytest.raises(BackendStalledError, match=r"nothing for 0\.5 s"):
        chat(standin, asked(tools=[tool]), QUICK)


def test_a_long_answer_that_goes_on_is_never_too_old(standin: OllamaStandin) -> None:
    standin.change(settings={"tokens_per_s": 20})
    assert len(chat(standin, asked("say 30 words"), QUICK).text.split()) == 30


def test_embeddings_of_a_silent_service_end_by_the_clock_too(standin: OllamaStandin) -> None:
    standin.fault(Kind.SILENT, VECTORS)
    with pytest.raises(BackendStalledError):
        OllamaBackend(standin.url).embed(EmbeddingRequest(texts=("x",), model=VECTORS), QUICK)


def test_a_runner_that_hangs_is_found_by_a_check_though_the_lists_answer(
    standin: OllamaStandin,
) -> None:
    backend = OllamaBackend(standin.url)
    standin.ollama.is_stuck = True
    seen = backend.probe()
    assert seen.is_up
    with pytest.raises(BackendStalledError):
        backend.check(seen.details[CHAT], within_s=0.4)
    with pytest.raises(BackendStalledError):
        backend.check(seen.details[VECTORS], within_s=0.4)


# --- no end of it -----------------------------------------------------------------------


def test_every_request_has_a_bound_of_tokens_and_no_task_raises_it_above_all(
    standin: OllamaStandin,
) -> None:
    standin.fault(Kind.ENDLESS)
    backend = OllamaBackend(standin.url, max_tokens=7)
    done = backend.chat(asked(), RUN)
    assert done.ending.finish_reason is FinishReason.LENGTH
    assert done.ending.usage.completion_tokens == 7
    standin.fault("ok")
    backend.chat(replace(asked("hi"), max_tokens=9_999_999), RUN)
    assert [body["options"]["num_predict"] for body in standin.chats] == [7, 262_144]


def test_what_generates_beyond_its_bound_is_ended() -> None:
    with OllamaServer() as wild:
        wild.behaviour = "endless"
        with pytest.raises(BackendTooLargeError, match="without end"):
            OllamaBackend(wild.url).chat(ChatRequest(messages=QUESTION, max_tokens=5), RUN)
        assert wild.caller_left.wait(PATIENCE_S)


def test_time_ends_what_has_no_end(standin: OllamaStandin) -> None:
    standin.fault(Kind.ENDLESS)
    standin.change(settings={"tokens_per_s": 50})
    with pytest.raises(BackendDeadlineError):
        chat(standin, replace(asked(), max_tokens=100_000), replace(RUN, deadline_s=0.5))
    standin.wait_until(lambda: bool(standin.counters.cancelled))


# --- not there, or not now --------------------------------------------------------------


def test_a_model_that_is_not_found_though_listed_is_asked_for_once_more(
    standin: OllamaStandin,
) -> None:
    standin.fault(Kind.MISSING, times=1)
    backend = OllamaBackend(standin.url)
    assert backend.chat(asked("hi"), RUN).text
    standin.fault(Kind.MISSING, VECTORS, times=1)
    request = EmbeddingRequest(texts=("x",), model=VECTORS)
    assert backend.embed(request, RUN).vectors
    assert standin.counters.requests["/api/tags"] == 3  # at first, and after each that was missed


def test_a_model_that_stays_missing_is_a_failure_after_two_requests(
    standin: OllamaStandin,
) -> None:
    standin.fault(Kind.MISSING)
    with pytest.raises(BackendError, match="not found"):
        chat(standin, asked())
    assert standin.counters.requests["/api/chat"] == 2


def test_a_placed_model_that_has_been_removed_is_given_back(standin: OllamaStandin) -> None:
    backend = OllamaBackend(standin.url)
    assert backend.probe().is_up
    backend.remove(CHAT)
    run = replace(RUN, placement=Placement(service="s", model=CHAT))
    with pytest.raises(BackendUnavailableError, match="no longer installed"):
        backend.chat(asked(), run)


def test_a_placed_model_that_is_there_but_unfit_is_told_so(standin: OllamaStandin) -> None:
    backend = OllamaBackend(standin.url)
    assert backend.probe().is_up
    with pytest.raises(BackendUnavailableError, match="makes embeddings: it cannot chat"):
        backend.chat(asked(), replace(RUN, placement=Placement(service="s", model=VECTORS)))
    request = EmbeddingRequest(texts=("x",), model=CHAT)
    with pytest.raises(BackendUnavailableError, match="makes no embeddings"):
        backend.embed(request, replace(RUN, placement=Placement(service="s", model=CHAT)))


@pytest.mark.parametrize("kind", [Kind.BUSY, Kind.BUSY_500])
def test_a_full_service_is_busy_whatever_its_status_says(
    standin: OllamaStandin, kind: Kind
) -> None:
    standin.fault(kind)
    backend = OllamaBackend(standin.url)
    with pytest.raises(BackendBusyError):
        backend.chat(asked(), RUN)
    with pytest.raises(BackendBusyError):
        backend.embed(EmbeddingRequest(texts=("x",), model=VECTORS), RUN)


def test_a_machine_that_is_off_is_unavailable(standin: OllamaStandin) -> None:
    backend = OllamaBackend(standin.url)
    assert backend.probe().is_up
    standin.stop()
    with pytest.raises(BackendUnavailableError) as caught:
        backend.chat(asked(), RUN)
    assert not isinstance(caught.value, BackendBusyError)


@pytest.mark.parametrize("kind", [Kind.FAST_FAIL, Kind.LOAD_FAIL, Kind.TOKEN_LOOP])
def test_a_runner_that_crashed_or_loops_is_a_failure_of_this_machine(
    standin: OllamaStandin, kind: Kind
) -> None:
    standin.fault(kind)
    with pytest.raises(BackendError) as caught:
        chat(standin, asked())
    assert caught.value.code == "backend.failed"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("llm busy - no slots available", BackendBusyError),
        ("server busy, please try again.  maximum pending requests exceeded", BackendBusyError),
        ("model requires more system memory (9.9 GiB) than is available", BackendMemoryError),
        ("llama runner process has terminated: cudaMalloc failed: out of memory",
         BackendMemoryError),
        ("the input length exceeds the context length", InvalidTaskError),
        ("request (9 tokens) exceeds the available context size (4 tokens)", InvalidTaskError),
        ('"m" does not support thinking', InvalidTaskError),
        ("illegal base64 data at input byte 3", InvalidTaskError),
        ('option "seed" must be of type integer', InvalidTaskError),
        ("pull model manifest: file does not exist", InvalidTaskError),
        ("this model is missing data required for image input", InvalidTaskError),
        ("something else", BackendError),
    ],
)  # fmt: skip
def test_what_ollama_says_tells_what_it_is(text: str, kind: type[D8Error]) -> None:
    assert type(failed(text)) is kind


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"error": "some new rule is broken"}', InvalidTaskError),
        (400, b"<html>The plain HTTP request was sent to HTTPS port</html>", BackendError),
        (400, b'{"error": "server busy"}', BackendBusyError),
        (401, b'{"error": "unauthorized"}', BackendError),
        (429, b"", BackendBusyError),
        (500, b'{"error": "this GPU does not support that kernel"}', BackendError),
        (502, b"bad gateway", BackendError),
        (503, b"<html>", BackendBusyError),
    ],
)
def test_what_ollama_itself_calls_a_wrong_request_is_refused_for_good(
    status: int, body: bytes, kind: type[D8Error]
) -> None:
    assert type(refused(RefusedAnswer(status, {}, body))) is kind


# --- answers that lack something --------------------------------------------------------


def test_thoughts_that_used_all_tokens_are_handed_on_with_the_reason(
    standin: OllamaStandin,
) -> None:
    standin.fault(Kind.EMPTY, THINKER)
    done = chat(standin, asked(model=THINKER))
    assert (done.text, done.ending.finish_reason) == ("", FinishReason.LENGTH)
    assert done.thinking


def test_an_end_without_a_reason_is_a_stop(standin: OllamaStandin) -> None:
    standin.fault(Kind.NO_REASON)
    assert chat(standin, asked("hi")).ending.finish_reason is FinishReason.STOP


def test_calls_of_tools_are_numbered_where_ollama_does_not(standin: OllamaStandin) -> None:
    standin.fault(Kind.TOOL_INDEX)
    tools = [{"type": "function", "function": {"name": name}} for name in ("add", "sub")]
    done = chat(standin, asked("add and sub", tools=tools))
    functions = [call["function"] for call in done.tool_calls]
    assert [(each["name"], each["index"]) for each in functions] == [("add", 0), ("sub", 1)]  # type: ignore[index]
    assert done.ending.finish_reason is FinishReason.TOOL_CALLS


def test_a_vector_of_no_numbers_is_a_failure_of_this_machine(standin: OllamaStandin) -> None:
    standin.fault(Kind.NAN, VECTORS)
    with pytest.raises(BackendError, match="NaN") as caught:
        OllamaBackend(standin.url).embed(EmbeddingRequest(texts=("x",), model=VECTORS), RUN)
    assert not isinstance(caught.value, BackendUnavailableError)


def test_what_is_longer_than_the_context_and_must_not_be_cut_is_refused_for_good(
    standin: OllamaStandin,
) -> None:
    request = EmbeddingRequest(texts=("x " * 5000,), model=VECTORS, more={"truncate": False})
    with pytest.raises(InvalidTaskError, match="D8_LOAD_OPTIONS"):
        OllamaBackend(standin.url).embed(request, RUN)


# --- who leaves -------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["queue", "prompt", "output"])
def test_who_cancels_stops_the_model_within_a_second(standin: OllamaStandin, phase: str) -> None:
    slow = {"prompt": {"prompt_tokens_per_s": 0.1}, "output": {"tokens_per_s": 10.0}}
    standin.change(settings=slow.get(phase, {}))
    if phase == "queue":
        standin.fault(Kind.SILENT)
    left = Left(lambda: standin.counters.open > 0 and _is_in(standin, phase))
    with pytest.raises(TaskCancelledError):
        chat(standin, asked("say 500 words"), replace(RUN, is_cancelled=left))
    standin.wait_until(lambda: bool(standin.counters.cancelled), within_s=5)
    cancelled = standin.counters.cancelled[0]
    assert cancelled.phase == phase
    assert cancelled.at - left.at < 1
    assert standin.running == 0


def test_who_cancels_embeddings_stops_the_model_within_a_second(standin: OllamaStandin) -> None:
    standin.change(settings={"prompt_tokens_per_s": 0.1})
    left = Left(lambda: standin.running > 0)
    request = EmbeddingRequest(texts=("one two",), model=VECTORS)
    with pytest.raises(TaskCancelledError):
        OllamaBackend(standin.url).embed(request, replace(RUN, is_cancelled=left))
    standin.wait_until(lambda: bool(standin.counters.cancelled), within_s=5)
    assert standin.counters.cancelled[0].at - left.at < 1


def test_who_cancels_does_not_wait_for_a_machine_that_notices_late(
    standin: OllamaStandin,
) -> None:
    standin.change(settings={"prompt_tokens_per_s": 1.0})
    standin.fault(Kind.LATE_NOTICE)
    left = Left(lambda: standin.running > 0)
    with pytest.raises(TaskCancelledError):
        chat(standin, asked("one two three four"), replace(RUN, is_cancelled=left))
    assert time.monotonic() - left.at < 1
    assert standin.running == 1  # its slot is still taken: who counts must know


def test_a_machine_that_a_cancelled_prompt_left_stuck_is_found_by_a_check(
    standin: OllamaStandin,
) -> None:
    backend = OllamaBackend(standin.url)
    info = backend.probe().details[CHAT]
    standin.change(settings={"prompt_tokens_per_s": 0.1})
    standin.fault(Kind.STUCK_GPU)
    left = Left(lambda: standin.running > 0)
    with pytest.raises(TaskCancelledError):
        backend.chat(asked(), replace(RUN, is_cancelled=left))
    standin.wait_until(lambda: standin.ollama.is_stuck)
    with pytest.raises(BackendStalledError):
        backend.check(info, within_s=0.4)
    standin.mend()
    standin.change(settings={"prompt_tokens_per_s": 0.0})
    backend.check(info, within_s=PATIENCE_S)


class Left:
    """Whether the caller has left: from when something is so; `at` says when."""

    def __init__(self, is_so: Callable[[], bool]) -> None:
        self._is_so, self.at = is_so, 0.0

    def __call__(self) -> bool:
        if not self.at and self._is_so():
            self.at = time.monotonic()
        return bool(self.at)


def _is_in(standin: OllamaStandin, phase: str) -> bool:
    return phase == "queue" or (
        standin.running > 0 and (phase == "prompt" or standin.counters.tokens > 2)
    )
