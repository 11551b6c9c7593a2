"""What values and exceptions of handlers become."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from d8mesh.core.protocol.messages import FAILED, MAX_PAYLOAD_BYTES, REFUSED, SUCCEEDED
from d8mesh.errors import BackendAnswerError, InvalidTaskError, PayloadTooLargeError
from d8mesh.handlers.chat_fields import agent_request
from d8mesh.handlers.results import (
    FAILED_UNSAID,
    chunk_of,
    of_exception,
    of_value,
    takes_context,
)
from d8mesh.handlers.retrying import Reject
from d8mesh.handlers.tracebacks import MAX_ERROR_CHARS


def told(ending: tuple[int, bytes]) -> tuple[int, dict[str, Any]]:
    return ending[0], msgspec.msgpack.decode(ending[1])


@pytest.mark.parametrize("value", [None, 5, "x", [1, 2], {"a": 1}, {"success": "yes"}])
def test_a_value_becomes_the_output(value: object) -> None:
    kind, result = told(of_value(value, "w", 0.5))
    assert kind == SUCCEEDED
    assert result == {"success": True, "output": value, "worker_id": "w", "duration_s": 0.5}


def test_an_object_with_a_boolean_success_is_the_result() -> None:
    assert told(of_value({"success": True, "genome": {}}, "w", 0.5)) == (
        SUCCEEDED, {"success": True, "genome": {}, "worker_id": "w", "duration_s": 0.5},
    )  # fmt: skip
    kind, result = told(of_value({"success": False, "error": "no", "duration_s": 9}, "w", 0.5))
    assert (kind, result["error"], result["duration_s"]) == (FAILED, "no", 9)


@pytest.mark.parametrize(
    ("error", "told_as"),
    [
        ({}, FAILED_UNSAID),
        ({"error": None}, FAILED_UNSAID),
        ({"error": ""}, FAILED_UNSAID),
        ({"error": 5}, "5"),
        ({"error": {"code": 7}}, '{"code":7}'),
        ({"error": ValueError("bad")}, '"bad"'),
    ],
)
def test_a_returned_failure_always_has_an_error_in_words(
    error: dict[str, Any], told_as: str
) -> None:
    kind, result = told(of_value({"success": False, **error}, "w", 0.5))
    assert (kind, result["error"]) == (FAILED, told_as)


@pytest.mark.parametrize(
    "value", [float("nan"), b"x", {1: 2}, object(), 2**70, {"success": True, "x": {1, 2}}]
)
def test_what_cannot_be_sent_is_refused_with_the_reason(value: object) -> None:
    kind, result = told(of_value(value, "w", 0.5))
    assert kind == REFUSED
    assert "cannot be sent" in result["error"]


class Scalar:
    """As a scalar of NumPy: no number of Python's, but it holds one."""

    shape = ()

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def item(self) -> object:
        return self._inner


class Broken(Scalar):
    def item(self) -> object:
        raise RuntimeError("the device is gone")


class Half(float):
    pass


@pytest.mark.parametrize(
    ("value", "output"),
    [(Half(0.5), 0.5), (Scalar(3), 3), ([Half(0.5), {"a": Scalar(True)}], [0.5, {"a": True}])],
)
def test_a_scalar_of_another_library_does_not_lose_the_run(value: object, output: object) -> None:
    kind, result = told(of_value(value, "w", 0.5))
    assert (kind, result["output"]) == (SUCCEEDED, output)


def test_a_verdict_may_be_another_librarys_boolean() -> None:
    kind, result = told(of_value({"success": Scalar(False), "loss": Half(2.5)}, "w", 0.5))
    assert kind == FAILED
    assert result["loss"] == 2.5
    kind, result = told(of_value(MappingProxyType({"success": True, "n": Half(2)}), "w", 0.5))
    assert (kind, result["n"]) == (SUCCEEDED, 2.0)


def test_a_value_whose_own_methods_raise_is_refused_with_what_they_raised() -> None:
    kind, result = told(of_value([Broken(1)], "w", 0.5))
    assert (kind, result["error"]) == (
        REFUSED, "the handler's result cannot be sent: the device is gone",
    )  # fmt: skip


def test_a_result_beyond_the_limit_is_refused() -> None:
    kind, result = told(of_value("x" * (MAX_PAYLOAD_BYTES + 1), "w", 0.5))
    assert kind == REFUSED
    assert "result_too_large" in result["error"]


class Silent(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt("even this fails, and would end a thread")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("bad"), FAILED, "ValueError: bad"),
        (ValueError(), FAILED, "ValueError"),
        (InvalidTaskError("data.x: wrong"), REFUSED, "data.x: wrong"),
        (Silent(), FAILED, "Silent"),
        (ValueError("\ud800"), FAILED, "ValueError: ?"),
        (ValueError("x" * 9999), FAILED, ("ValueError: " + "x" * 9999)[:MAX_ERROR_CHARS]),
    ],
)
def test_an_exception_becomes_one_bounded_line(error: Exception, kind: int, text: str) -> None:
    ended, result = told(of_exception(error, "w", 0.5))
    assert (ended, result["success"], result["error"]) == (kind, False, text)


def test_what_a_service_says_stands_without_the_name_of_a_class() -> None:
    _, result = told(of_exception(BackendAnswerError("Ollama broke off (peer closed)"), "w", 0.5))
    assert result["error"] == "Ollama broke off (peer closed)"
    try:
        raise BackendAnswerError("mine")  # in a handler of somebody's own
    except BackendAnswerError as error:
        _, result = told(of_exception(error, "w", 0.5))
    assert result["error"] == "BackendAnswerError: mine"
    assert "code" not in result


def test_an_error_of_ours_tells_its_code_and_one_of_a_handler_does_not() -> None:
    _, result = told(of_exception(BackendAnswerError("broke off"), "w", 0.5))
    assert result["code"] == "backend.answer"
    assert "code" not in told(of_exception(ValueError("bad"), "w", 0.5))[1]


def test_handlers_take_the_data_with_or_without_a_context() -> None:
    assert takes_context(lambda data, context: None)
    assert takes_context(lambda *both: None)
    assert not takes_context(lambda data: None)


def raised(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception, match=r".") as caught:
        call()
    way = caught.value.__traceback__
    return caught.value.with_traceback(way and way.tb_next)  # without this file's frame


def test_what_is_said_in_words_has_no_traceback() -> None:
    def reject() -> None:
        raise Reject("no")

    def refuse() -> None:
        raise InvalidTaskError("no")

    for error, has_one in (
        (raised(reject), False),
        (raised(refuse), True),  # a handler of somebody else, which may be at fault
    ):
        assert ("traceback" in told(of_exception(error, "w", 0.5))[1]) == has_one
    ours = raised(partial(agent_request, {"messages": []}))
    assert "traceback" not in told(of_exception(ours, "w", 0.5))[1]


def test_an_exception_takes_its_traceback_along_and_a_returned_failure_has_none() -> None:
    def handler() -> None:
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad") as caught:
        handler()
    result = told(of_exception(caught.value, "w", 0.5))[1]
    assert "in handler" in result["traceback"]
    assert result["traceback"].endswith("ValueError: bad")
    assert "traceback" not in told(of_value({"success": False, "error": "no"}, "w", 0.5))[1]


@pytest.mark.parametrize("value", [None, "x", 5, [1.5], {"a": [True]}])
def test_a_chunk_is_any_value_of_json(value: object) -> None:
    assert msgspec.msgpack.decode(chunk_of(value)) == value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": {"b": {1: 2}}}, "the chunk.a.b: saw a key of type int"),
        ({"a": float("nan")}, "the chunk.a: nan"),
        (b"x", "the chunk: saw bytes"),
        ("\ud800", "the chunk: this cannot be sent"),
    ],
)
def test_a_chunk_that_is_not_json_is_refused_with_its_path(value: object, said: str) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        chunk_of(value)


def test_a_chunk_beyond_the_limit_is_refused_and_so_is_its_task() -> None:
    with pytest.raises(PayloadTooLargeError, match="33554437 bytes") as caught:
        chunk_of("x" * MAX_PAYLOAD_BYTES)
    kind, result = told(of_exception(caught.value, "w", 0.5))
    assert (kind, result["error"][:21]) == (REFUSED, "PayloadTooLargeError:")
