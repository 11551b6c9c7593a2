"""Which failed attempts are tried again, and when: as the handler's author says."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.core.protocol.messages import FAILED, REFUSED
from d8mesh.errors import HandlerError, TaskFailedError
from d8mesh.handlers import results
from d8mesh.handlers.retrying import ANY, MAX_BACKOFF_S, Reject, Retries, of_names


def is_odd(error: BaseException) -> bool:
    return "odd" in str(error)


def doubled(attempt: int) -> float:
    return 2.0**attempt


def ending(retries: Retries, error: BaseException, attempt: int = 1) -> tuple[int, dict[str, Any]]:
    kind, payload = retries.applied(results.of_exception(error, "w", 0.1), error, attempt)
    return kind, msgspec.msgpack.decode(payload)


@pytest.mark.parametrize(
    ("retry", "error", "kind"),
    [
        (True, ValueError("x"), FAILED),
        (False, ValueError("x"), REFUSED),
        (ValueError, ValueError("x"), FAILED),
        (ValueError, KeyError("x"), REFUSED),
        ((OSError, KeyError), ConnectionResetError("x"), FAILED),
        ((OSError, KeyError), ValueError("x"), REFUSED),
        (is_odd, ValueError("odd"), FAILED),
        (is_odd, ValueError("even"), REFUSED),
        (OSError, ExceptionGroup("g", [ConnectionError("a"), TimeoutError("b")]), FAILED),
        (OSError, ExceptionGroup("g", [ConnectionError("a"), ValueError("b")]), REFUSED),
        (True, Reject("not this"), REFUSED),
        (Exception, ExceptionGroup("g", [ValueError("a"), Reject("b")]), REFUSED),
    ],
)
def test_the_author_says_which_errors_are_tried_again(
    retry: Any, error: BaseException, kind: int
) -> None:
    assert ending(Retries(retry), error)[0] == kind


def test_a_rejected_task_says_why_in_plain_words() -> None:
    assert ending(ANY, Reject("the image is empty"))[1]["error"] == "the image is empty"
    assert ending(ANY, Reject())[1]["error"] == "the handler rejected the task"


def test_a_returned_failure_is_shown_as_the_error_that_its_submitter_gets() -> None:
    seen: list[BaseException] = []

    def look(error: BaseException) -> bool:
        seen.append(error)
        return False

    failed = results.of_value({"success": False, "error": "no"}, "w", 0.1)
    assert Retries(look).applied(failed, None, 1)[0] == REFUSED
    (error,) = seen
    assert isinstance(error, TaskFailedError)
    assert (str(error), error.result["success"]) == ("no", False)
    assert Retries(ValueError).applied(failed, None, 1)[0] == REFUSED


@pytest.mark.parametrize(
    ("backoff", "pause_s"),
    [(0, 0.0), (2.5, 2.5), (1e9, MAX_BACKOFF_S), (float("inf"), MAX_BACKOFF_S), (doubled, 8.0)],
)
def test_the_author_says_how_long_to_wait(backoff: Any, pause_s: float) -> None:
    kind, body = ending(Retries(backoff=backoff), ValueError("x"), 3)
    assert (kind, body["retry_after_s"]) == (FAILED, pause_s)


def test_without_a_word_nothing_is_added() -> None:
    assert "retry_after_s" not in ending(ANY, ValueError("x"))[1]
    success = results.of_value(1, "w", 0.1)
    assert Retries(False).applied(success, None, 1) == success


def test_an_author_whose_own_function_fails_gets_his_error_told_and_the_task_its_retry() -> None:
    kind, body = ending(Retries(lambda error: error.nothing), ValueError("x"))  # type: ignore[attr-defined]
    assert kind == FAILED
    assert body["error"].startswith("ValueError: x (and its retry or backoff raised AttributeError")
    kind, body = ending(Retries(backoff=lambda attempt: "soon"), ValueError("x"))  # type: ignore[arg-type,return-value]
    assert "expected seconds" in body["error"]


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retry", 5), ("retry", (ValueError, 5)), ("backoff", -1), ("backoff", "1"),
        ("backoff", True), ("backoff", NAN),
    ],
)  # fmt: skip
def test_what_is_no_decision_is_refused(name: str, value: Any) -> None:
    with pytest.raises(HandlerError, match="expected"):
        Retries(**{name: value})


@pytest.mark.parametrize(
    "retries",
    [
        ANY,
        Retries(False),
        Retries(OSError, 2.0),
        Retries((OSError, KeyError)),
        Retries(is_odd, doubled),
    ],
)
def test_another_process_makes_the_same_of_the_names(retries: Retries) -> None:
    named = msgspec.msgpack.decode(msgspec.msgpack.encode(retries.named()))
    assert of_names(*named) == (Retries((OSError,), 2.0) if retries.retry is OSError else retries)


def test_what_another_process_cannot_import_is_refused() -> None:
    with pytest.raises(HandlerError, match="cannot import"):
        Retries(lambda error: True).named()
    with pytest.raises(HandlerError, match="cannot import"):
        of_names("tests.handlers.test_retrying:nothing", None)


def test_a_broken_text_of_a_rejection_breaks_nothing() -> None:
    class Odd(Reject):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    assert ending(ANY, Odd())[1]["error"] == "the handler rejected the task"
