"""Whether a failed attempt is worth another, and after which pause: the handler's author says.

The decision is made where the exception is, in the worker or in a handler's own process; the
result carries it to the orchestrator, which counts the attempts.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias

import msgspec

from d8mesh.core.protocol.messages import FAILED, REFUSED
from d8mesh.errors import HandlerError, TaskFailedError
from d8mesh.handlers.tracebacks import MAX_ERROR_CHARS, message_of

#: The longest pause that a handler may wish for before the next attempt: a day.
MAX_BACKOFF_S: Final = 86_400.0
#: What stands for the decision of a handler's author that fails itself.
_NOTE: Final = "{error} (and its {what} raised {found})"


class Reject(Exception):
    """Raised by a handler: the task is to fail now, to try it again would not help.

    Its text is the task's error.
    """


#: All errors, none, those of these classes, or those for which it returns true.
RetryRule: TypeAlias = (
    bool | type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]
)
#: Seconds before the next attempt, or what returns them for the attempt that failed (from 1).
Backoff: TypeAlias = float | Callable[[int], float] | None
#: A state of `core.protocol.messages`, and the result that is recorded.
AttemptEnd: TypeAlias = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Retries:
    """What becomes of failed attempts of one handler.

    Raises:
        HandlerError: `retry` or `backoff` is none of what it may be.
    """

    retry: RetryRule = True
    backoff: Backoff = None

    def __post_init__(self) -> None:
        """Look at what was given."""
        if not (isinstance(self.retry, bool) or _classes(self.retry) or callable(self.retry)):
            raise HandlerError(
                f"retry: saw {self.retry!r:.80}, expected True, False, an exception class, a "
                "tuple of them, or a function of the error"
            )
        if self.backoff is not None and not callable(self.backoff):
            seconds(self.backoff)

    def applied(self, ending: AttemptEnd, error: BaseException | None, attempt: int) -> AttemptEnd:
        """Return how a failed attempt ends, with what was decided of the next.

        Args:
            ending: kind and result as they would be without this.
            error: what the handler raised; None: it returned a failure.
            attempt: which attempt failed, from 1.
        """
        kind, payload = ending
        is_rejected = error is not None and _is_reject(error)
        if kind != FAILED or (self is ANY and not is_rejected):
            return ending
        body = msgspec.msgpack.decode(payload)
        if is_rejected:
            if isinstance(error, Reject):
                body["error"] = _text(error) or "the handler rejected the task"
            return REFUSED, msgspec.msgpack.encode(body)
        shown = error or TaskFailedError(str(body.get("error") or ""), result=body)
        try:
            if not self._is_worth(shown):
                return REFUSED, payload
            pause_s = self.backoff(attempt) if callable(self.backoff) else self.backoff
            if pause_s is None:
                return ending
            body["retry_after_s"] = seconds(pause_s)
        except BaseException as found:  # the author's own mistake: as if nothing had been said
            what = f"{type(found).__name__}: {_text(found)}"[:200]
            told = _NOTE.format(error=body.get("error"), what="retry or backoff", found=what)
            body["error"] = told.encode("utf-8", "replace").decode("utf-8")
        return kind, msgspec.msgpack.encode(body)

    def named(self) -> list[Any]:
        """Return this so that another process can make it with `of_names`.

        Raises:
            HandlerError: a class or function that a process cannot import.
        """
        classes = _classes(self.retry)
        if isinstance(self.retry, bool):
            retry: object = self.retry
        else:
            retry = [name_of(each) for each in classes] if classes else name_of(self.retry)
        return [retry, name_of(self.backoff) if callable(self.backoff) else self.backoff]

    def _is_worth(self, error: BaseException) -> bool:
        retry, classes = self.retry, _classes(self.retry)
        if classes:
            return _all_of(error, classes)
        return bool(retry(error)) if callable(retry) else bool(retry)


#: What holds without a word of the author: every error is worth another attempt.
ANY: Final = Retries()


def of_names(retry: Any, backoff: Any) -> Retries:
    """Return what `Retries.named` made names of.

    Raises:
        HandlerError: one of them cannot be imported.
    """
    if isinstance(retry, list):
        retry = tuple(_found(each) for each in retry)
    made = Retries(
        _found(retry) if isinstance(retry, str) else retry,
        _found(backoff) if isinstance(backoff, str) else backoff,
    )
    return ANY if made == ANY else made


def name_of(value: object) -> str:
    """Return ``MODULE:NAME`` of a class or function that another process can import.

    Raises:
        HandlerError: there is none, or something else has that name.
    """
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
    told = f"{module}:{name}"
    is_there = module and module != "__main__" and name and "<" not in name
    if not is_there or _found(told) is not value:
        raise HandlerError(
            f"a process cannot import {told}: put it at the top of a module other than the "
            "started script"
        )
    return told


def seconds(value: object) -> float:
    """Return a pause, at most a day.

    Raises:
        HandlerError: it is no number of seconds.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise HandlerError(f"backoff: saw {value!r:.80}, expected seconds, 0 or more")
    return min(float(value), MAX_BACKOFF_S) if not math.isinf(value) else MAX_BACKOFF_S


@cache
def _found(name: str) -> Any:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise HandlerError(f"cannot import {name}: {error}") from error
    return found


def _classes(retry: object) -> tuple[type[BaseException], ...]:
    given = retry if isinstance(retry, tuple) else (retry,)
    is_class = all(isinstance(each, type) and issubclass(each, BaseException) for each in given)
    return given if is_class else ()


def _all_of(error: BaseException, classes: tuple[type[BaseException], ...]) -> bool:
    """Of a group of exceptions each must be of one of the classes."""
    if isinstance(error, classes):
        return True
    if not isinstance(error, BaseExceptionGroup):
        return False
    return all(_all_of(each, classes) for each in error.exceptions)


def _is_reject(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_is_reject(each) for each in error.exceptions)
    return isinstance(error, Reject)


def _text(error: BaseException) -> str:
    return message_of(error)[:MAX_ERROR_CHARS].encode("utf-8", "replace").decode("utf-8")
