"""Tasks given to the mesh by an app, and their outcomes as they come.

What an app needs of a client is said by two protocols; `d8mesh.Client` keeps them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from d8mesh.errors import BrokerUnavailableError, D8Error, TaskError, WaitTimeoutError

#: How long to wait for the oldest task before the others are looked at.
LOOK_S: Final = 0.25
#: Nothing has come for so long: ask why.
SILENCE_S: Final = 4.0
#: A mesh that is there is found within a few seconds.
CONNECT_S: Final = 30.0
#: Cancelling what is left, when a person leaves, takes no longer than this.
CANCEL_S: Final = 5.0


class Pending(Protocol):
    """A task that was submitted."""

    def result(self, timeout: float | None = None) -> Mapping[str, Any]:
        """Return its result; raise `WaitTimeoutError` or how it ended."""

    def status(self) -> Mapping[str, Any]:
        """Return its documented status; ``reason`` says why it waits."""

    def cancel(self) -> object:
        """Cancel it."""


class Submits(Protocol):
    """Something that takes tasks: a client."""

    def submit_many(
        self, kind: str, datas: Sequence[Mapping[str, Any]], /, *, timeout: float | None = None
    ) -> Sequence[Pending]:
        """Submit one task of `kind` for each of `datas`; return them in order.

        Raises:
            WaitTimeoutError: no orchestrator acknowledged them within `timeout`.
        """


class Connects(Protocol):
    """Something that looks for an orchestrator: a client."""

    def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait until an orchestrator answers; return whether one does."""

    @property
    def trouble(self) -> str:
        """Why none does, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the task at `index` ended: with a result, or with an error for people."""

    index: int
    result: Mapping[str, Any] | None = None
    error: str = ""


def connect(client: Connects, *, timeout_s: float | None, on_wait: Callable[[str], None]) -> None:
    """Wait until `client` has an orchestrator, at most `timeout_s` or `CONNECT_S`.

    Raises:
        BrokerUnavailableError: none was found.
    """
    bound_s = CONNECT_S if timeout_s is None else min(timeout_s, CONNECT_S)
    early_s = min(bound_s, SILENCE_S)
    if client.wait_connected(early_s):
        return
    on_wait(f"no orchestrator has been found yet: still looking ({client.trouble})")
    if not client.wait_connected(bound_s - early_s):
        raise BrokerUnavailableError(
            f"no orchestrator was found within {bound_s:g} s: {client.trouble}"
        )


def outcomes(
    tasks: Sequence[Pending],
    *,
    until: float | None = None,
    on_silence: Callable[[str], None] = lambda reason: None,
) -> Iterator[Outcome]:
    """Yield how each of `tasks` ended, as they end.

    Args:
        tasks: what was submitted.
        until: monotonic seconds when waiting is over; None waits for ever.
        on_silence: told why nothing comes, once for each reason.

    Raises:
        WaitTimeoutError: `until` has come and some have not ended.
    """
    waiting = dict(enumerate(tasks))
    reasons: set[str] = set()
    heard = time.monotonic()
    while waiting:
        ended = list(_ended(waiting))
        now = time.monotonic()
        for outcome in ended:
            del waiting[outcome.index]
            heard = now
        yield from ended
        if waiting and until is not None and now >= until:
            raise WaitTimeoutError(f"{len(waiting)} of {len(tasks)} tasks have not ended in time")
        if waiting and now - heard >= SILENCE_S:
            heard = now
            reason = _reason(next(iter(waiting.values())))
            if reason and reason not in reasons:
                reasons.add(reason)
                on_silence(reason)


def cancel_all(tasks: Sequence[Pending]) -> None:
    """Cancel `tasks` as far as that succeeds within `CANCEL_S`; ended ones stay as they are."""
    until = time.monotonic() + CANCEL_S
    for task in tasks:
        if time.monotonic() >= until:
            return
        with contextlib.suppress(D8Error):
            task.cancel()


def _ended(waiting: Mapping[int, Pending]) -> Iterator[Outcome]:
    """Wait a moment for the oldest, then look at all: they end in any order."""
    wait_s = LOOK_S
    for index, task in waiting.items():
        try:
            yield Outcome(index=index, result=task.result(timeout=wait_s))
        except WaitTimeoutError:
            pass
        except TaskError as error:
            yield Outcome(index=index, error=str(error) or error.code)
        wait_s = 0.0


def _reason(task: Pending) -> str:
    try:
        return str(task.status().get("reason") or "")
    except D8Error as error:
        return str(error)
