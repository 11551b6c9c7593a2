"""What services say when they refuse, in every form."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.backends.openai.faults import (
    MAX_TOLD_WAIT_S,
    Period,
    bounds_in,
    error_said,
    fault_in,
    fault_of,
    seconds_in,
    used_up_in,
)
from tests.cloud_servers import day_over, gemini_429, minute_over, too_large


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2m59.56s", 179.56), ("7.66s", 7.66), ("1h2m3s", 3723), ("250ms", 0.25), ("45", 45),
        ("45.837906927s", 45.837906927), ("0s", 0), ("", None), ("soon", None), ("5 minutes", None),
        ("9" * 30, MAX_TOLD_WAIT_S), ("-3", None), ("nan", None),
    ],
)  # fmt: skip
def test_spans_of_time_are_read(text: str, seconds: float | None) -> None:
    found = seconds_in(text)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_groqs_minute_is_read_from_text_and_header() -> None:
    fault = fault_in(429, {}, minute_over("groq", "m", "tokens", 8000, 4.77).content)
    assert fault.wait_s == pytest.approx(4.77)
    assert (fault.period, fault.bounds) == (Period.MINUTE, {"minute_tokens": 8000})
    assert fault.is_limit
    told = fault_in(429, {"retry-after": "9"}, b"slow down")
    assert (told.wait_s, told.text, told.is_limit) == (9.0, "slow down", True)


def test_a_text_is_not_looked_at_for_longer_than_it_is_worth() -> None:
    began = time.process_time()
    assert fault_of({"error": {"message": "on tokens per minute " * 50_000}}) is not None
    assert fault_of({"error": {"code": "9" * 10_000_000}}) is not None
    assert time.process_time() - began < 2


def test_what_lies_deep_is_no_error() -> None:
    deep = json.loads("[" * 600 + "]" * 600)
    assert fault_of(deep) is None
    assert fault_of([{"error": deep}]) is None


def test_groqs_day_is_one() -> None:
    answer = day_over("groq", "m", 1000)
    fault = fault_in(429, answer.headers, answer.content)
    assert (fault.period, fault.wait_s) == (Period.DAY, 432.0)
    assert fault.bounds == {"day_requests": 1000}


def test_geminis_list_is_read_with_its_details() -> None:
    quota = "GenerateContentInputTokensPerModelPerMinute-FreeTier"
    fault = fault_in(429, {}, gemini_429(quota, 250_000, "45.837906927s").content)
    assert fault.is_limit
    assert fault.wait_s == pytest.approx(45.838, abs=0.01)
    assert (fault.period, fault.bounds) == (Period.MINUTE, {"minute_tokens": 250_000})
    assert fault.code == "RESOURCE_EXHAUSTED"


def test_geminis_day_and_what_is_not_in_the_tier_are_told_apart() -> None:
    quota = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
    assert fault_in(429, {}, gemini_429(quota, 100, "22s").content).period is Period.DAY
    gone = fault_in(429, {}, gemini_429(quota, 0, "22s").content)
    assert gone.period is Period.FOR_GOOD


def test_what_is_too_large_is_no_limit_though_its_code_says_so() -> None:
    fault = fault_in(413, {}, too_large("m", 8000, 32_979).content)
    assert fault.is_too_large
    assert not fault.is_limit
    assert fault.bounds == {"minute_tokens": 8000}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),
        (503, [{"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}]),
        (498, {"error": {"message": "full", "code": "capacity_exceeded"}}),
        (502, b"<html>Bad gateway</html>"),
        (0, {"error": {"code": 503, "message": "Loading model"}}),
    ],
)
def test_an_overload_is_known(status: int, body: object) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert fault_in(status, {}, content).is_overload


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "x"), (403, "x"), (400, "API key not valid. Please pass a valid API key.")],
)
def test_a_refused_key_is_known(status: int, message: str) -> None:
    assert fault_in(status, {}, json.dumps({"error": {"message": message}}).encode()).is_key_refused


def test_a_date_of_retry_after_is_read_by_the_services_own_clock() -> None:
    headers = {
        "retry-after": "Sun, 29 Nov 2026 12:00:30 GMT", "date": "Sun, 29 Nov 2026 12:00:00 GMT",
    }  # fmt: skip
    assert fault_in(429, headers, b"").wait_s == 30.0
    assert fault_in(429, {"retry-after": "whenever"}, b"").wait_s is None
    assert fault_in(429, {"retry-after-ms": "1500"}, b"").wait_s == 1.5


@pytest.mark.parametrize(
    "answer",
    [{"choices": []}, {"data": [], "object": "list"}, {"error": None, "choices": []}, [], 7, None,
     {"error": {}}],
)  # fmt: skip
def test_a_right_answer_is_no_fault(answer: object) -> None:
    assert fault_of(answer) is None or answer == {"error": {}}


def test_headers_tell_bounds_and_what_is_used_up() -> None:
    headers = {
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "2m59.56s",
        "x-ratelimit-limit-tokens": "8000",
        "x-ratelimit-remaining-tokens": "17",
        "x-ratelimit-reset-tokens": "7.66s",
    }
    assert bounds_in(headers) == {"day_requests": 1000, "minute_tokens": 8000}
    used_up = used_up_in(headers)
    assert used_up is not None
    assert used_up[0] == pytest.approx(86.4)  # then one of the day's thousand has come back
    assert used_up_in({**headers, "x-ratelimit-remaining-requests": "3"}) is None
    assert bounds_in({"x-ratelimit-limit-tokens": "many"}) == {}


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_body_is_too_strange(content: bytes) -> None:
    assert fault_in(500, {}, content).status == 500


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "message", "code", "details", "violations", "retryDelay", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(answer=_JSON)
def test_no_answer_is_too_strange(answer: object) -> None:
    said = error_said(answer)
    assert fault_in(429, {}, json.dumps(answer).encode()).status == 429
    assert said is None or fault_of(answer) is not None
