"""Each fault of the stand-in, by its row."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.ollama_standin import OllamaStandin
from tests.standin.calls import ask, asking, get, post, text_of
from tests.standin.faults import Kind
from tests.standin.machine import Model
from tests.standin.test_machine import raw_ask

CHAT, EMBEDDER = "m:1b", "e:latest"


@pytest.fixture
def standin() -> Iterator[OllamaStandin]:
    vectors = Model(name=EMBEDDER, can=("embedding",))
    with OllamaStandin(models=[CHAT, vectors], num_parallel=4) as running:
        yield running


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [
        (Kind.BUSY, 503, "server busy, please try again.  maximum pending requests exceeded"),
        (Kind.BUSY_500, 500, "llm busy - no slots available"),
        (Kind.FAST_FAIL, 500, "model runner has unexpectedly stopped"),
        (Kind.LOAD_FAIL, 500, "model runner has unexpectedly stopped"),
        (Kind.TOKEN_LOOP, 500, "prediction aborted, token repeat limit reached"),
        (Kind.MISSING, 404, f"model '{CHAT}' not found"),
    ],
)
def test_a_refusal_comes_before_the_first_line(
    standin: OllamaStandin, kind: Kind, status: int, text: str
) -> None:
    standin.fault(kind, CHAT, times=1)
    refused = ask(standin.url, CHAT, "hi")
    assert (refused.status, refused.json["error"][: len(text)]) == (status, text)
    assert ask(standin.url, CHAT, "hi").status == 200


def test_a_fast_failure_takes_a_millisecond_or_so(standin: OllamaStandin) -> None:
    standin.fault(Kind.FAST_FAIL)
    begun = time.monotonic()
    for _ in range(20):
        ask(standin.url, CHAT, "hi")
    assert time.monotonic() - begun < 1
    standin.fault("ok")
    assert ask(standin.url, CHAT, "hi").status == 200


def test_silence_begins_before_the_first_byte_or_in_the_middle(standin: OllamaStandin) -> None:
    standin.fault(Kind.SILENT, CHAT)
    with closing(raw_ask(standin, "hi")) as connection:
        standin.wait_until(lambda: standin.counters.open == 1)
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert get(standin.url, "/api/tags").status == 200
    standin.wait_until(lambda: standin.counters.open == 0)
    standin.fault(Kind.STALL, CHAT, after=3)
    body = {"model": CHAT, "messages": [{"role": "user", "content": "say 9 words"}]}
    with asking(standin.url, "POST", "/api/chat", body) as response:
        lines = [json.loads(response.readline()) for _ in range(3)]
    assert text_of(lines) == "w0 w1 w2"
    standin.wait_until(lambda: standin.counters.cancelled[-1].pieces == 3)


def test_a_frozen_machine_answers_nothing(standin: OllamaStandin) -> None:
    standin.fault(Kind.FROZEN)
    connection = http.client.HTTPConnection("127.0.0.1", standin.port, timeout=0.2)
    with closing(connection):
        connection.request("GET", "/api/tags")
        with pytest.raises(TimeoutError):
            connection.getresponse()


def test_a_stream_that_is_cut_is_no_whole_answer(standin: OllamaStandin) -> None:
    standin.fault(Kind.CUT, after=3)
    with pytest.raises(http.client.IncompleteRead):
        ask(standin.url, CHAT, "say 9 words")
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(standin.url, CHAT, "say 9 words", stream=False)


def test_an_end_without_done_and_an_error_in_the_stream(standin: OllamaStandin) -> None:
    standin.fault(Kind.NO_DONE, after=3)
    assert [line["done"] for line in ask(standin.url, CHAT, "say 9 words").lines] == [False] * 3
    assert ask(standin.url, CHAT, "say 9 words", stream=False).json["done"] is False
    standin.fault(Kind.ERROR_LINE, after=3)
    answered = ask(standin.url, CHAT, "say 9 words")
    assert (answered.status, len(answered.lines)) == (200, 4)
    assert set(answered.lines[-1]) == {"error"}


def test_no_content_or_far_too_much(standin: OllamaStandin) -> None:
    standin.fault(Kind.EMPTY)
    answered = ask(standin.url, CHAT, "hi", stream=False, options={"num_predict": 6}).json
    assert (answered["message"]["content"], answered["done_reason"]) == ("", "length")
    assert answered["message"]["thinking"]
    standin.fault(Kind.ENDLESS)
    lines = ask(standin.url, CHAT, "hi", options={"num_predict": 100}).lines
    assert (len(lines), lines[-1]["done_reason"]) == (101, "length")
    body = {"model": CHAT, "messages": [{"role": "user", "content": "hi"}]}
    with asking(standin.url, "POST", "/api/chat", body) as response:
        response.read(100_000)
    standin.wait_until(lambda: standin.counters.open == 0)
    assert standin.counters.cancelled[-1].pieces > 500


def test_a_vector_that_is_no_number_is_an_error(standin: OllamaStandin) -> None:
    standin.fault(Kind.NAN)
    answered = post(standin.url, "/api/embed", {"model": EMBEDDER, "input": "x"})
    assert (answered.status, "NaN" in answered.json["error"]) == (500, True)


def test_a_runner_hangs_once_somebody_left_in_its_prompt_phase(standin: OllamaStandin) -> None:
    standin.change(settings={"prompt_tokens_per_s": 0.1})
    standin.fault(Kind.STUCK_GPU)
    with closing(raw_ask(standin, "hi")):
        standin.wait_until(lambda: standin.running == 1)
    standin.wait_until(lambda: standin.ollama.is_stuck)
    with closing(raw_ask(standin, "hi")):
        standin.wait_until(lambda: standin.counters.open == 1)
        assert get(standin.url, "/api/ps").status == 200
    standin.change(settings={"prompt_tokens_per_s": 0})
    standin.mend()
    assert ask(standin.url, CHAT, "hi").status == 200


def test_a_slot_may_be_free_late(standin: OllamaStandin) -> None:
    standin.change(settings={"prompt_tokens_per_s": 2})
    standin.fault(Kind.LATE_NOTICE)
    with closing(raw_ask(standin, "one two")):
        standin.wait_until(lambda: standin.running == 1)
    begun = time.monotonic()
    standin.wait_until(lambda: standin.running == 0)
    assert time.monotonic() - begun > 0.5


def test_reasons_and_indexes_may_be_wrong(standin: OllamaStandin) -> None:
    standin.fault(Kind.NO_REASON)
    assert ask(standin.url, CHAT, "hi").lines[-1]["done_reason"] == ""
    standin.fault(Kind.TOOL_INDEX)
    tools = [{"type": "function", "function": {"name": name}} for name in ("one", "two")]
    lines = ask(standin.url, CHAT, "one two", tools=tools).lines
    calls = [each for line in lines for each in line["message"].get("tool_calls", ())]
    assert [each["function"]["index"] for each in calls] == [0, 0]
    standin.mend()
    lines = ask(standin.url, CHAT, "one two", tools=tools).lines
    calls = [each for line in lines for each in line["message"].get("tool_calls", ())]
    assert [each["function"]["index"] for each in calls] == [0, 1]


def test_faults_and_counters_are_there_over_http_too(standin: OllamaStandin) -> None:
    post(standin.url, "/_standin", {"fault": {"kind": "busy", "model": CHAT, "times": 1}})
    assert ask(standin.url, CHAT, "hi").status == 503
    assert ask(standin.url, CHAT, "hi").status == 200
    told = get(standin.url, "/_standin").json
    assert (told["requests"]["/api/chat"], told["answered"]["/api/chat"]) == (2, 1)
    assert told["failed"] == {"/api/chat": 1}
    post(standin.url, "/_standin", {"reset": True})
    assert get(standin.url, "/_standin").json["answered"] == {}
    assert post(standin.url, "/_standin", {"fault": {"kind": "nonsense"}}).status == 400
