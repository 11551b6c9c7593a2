"""Tasks given to the mesh by an app, and their outcomes as they come.

What an app needs of a client is said by two protocols; `d8mesh.Client` keeps them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from d8mesh.config import Config
from d8mesh.edge.terminal import tell
from d8mesh.errors import BrokerUnavailableError, D8Error, TaskError, WaitTimeoutError
from d8mesh.words import tr, translated

if TYPE_CHECKING:
    from d8mesh.nodes.client import Client

#: How long to wait for the oldest task before the others are looked at.
OLDEST_WAIT_S: Final = 0.25
#: Nothing has come for so long: ask why.
SILENCE_S: Final = 4.0
INTERRUPTED: Final = 130
#: An orchestrator that is there answers sooner; that none is there is a reason too.
WHY_S: Final = 2.0
#: No worker of the mesh can run the tasks for so long: a person should not wait for it unasked.
NOBODY_S: Final = 60.0
#: How an orchestrator begins the reason of a task that no worker of the mesh can run.
_NOBODY: Final = "no worker"
#: A mesh that is there is found within a few seconds.
FIND_MESH_S: Final = 30.0
#: Cancelling what is left, when a person leaves, takes no longer than this.
CANCEL_S: Final = 5.0


class Pending(Protocol):
    """A task that was submitted."""

    def result(self, timeout: float | None = None) -> Mapping[str, Any]:
        """Return its result; raise `WaitTimeoutError` or how it ended."""

    def status(self, timeout: float | None = None) -> Mapping[str, Any]:
        """Return its documented status; ``reason`` says why it waits."""

    def cancel(self) -> bool:
        """Cancel it; return whether it is cancelled now."""


class SubmitsMany(Protocol):
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


@contextlib.contextmanager
def connected(config: Config, timeout_s: float | None) -> Iterator[tuple[Client, float | None]]:
    """Yield a client that has found an orchestrator, and when `timeout_s` are over.

    That is told in monotonic seconds, None for never; the search is part of the time.

    Raises:
        BrokerUnavailableError: none was found.
    """
    from d8mesh.nodes.client import Client  # slow to import

    until = None if timeout_s is None else time.monotonic() + timeout_s
    with Client(config=config) as client:
        connect(client, timeout_s=timeout_s, on_wait=tell)
        yield client, until


def connect(client: Connects, *, timeout_s: float | None, on_wait: Callable[[str], None]) -> None:
    """Wait until `client` has an orchestrator, at most `timeout_s` or `FIND_MESH_S`.

    Raises:
        BrokerUnavailableError: none was found.
    """
    bound_s = FIND_MESH_S if timeout_s is None else min(timeout_s, FIND_MESH_S)
    # The error says it all: before, it is said only to who waits long.
    early_s = SILENCE_S if bound_s >= 2 * SILENCE_S else bound_s
    if client.wait_connected(early_s):
        return
    why = translated(client.trouble)
    left_s = bound_s - early_s
    if left_s:
        on_wait(tr("no orchestrator has been found yet: still looking ({why})", why=why))
    if not left_s or not client.wait_connected(left_s):
        raise BrokerUnavailableError(
            f"no orchestrator was found within {bound_s:g} s: {client.trouble}"
        )


def outcomes(
    tasks: Sequence[Pending],
    *,
    until: float | None = None,
    on_silence: Callable[[str], None] = lambda reason: None,
    nobody_s: float | None = None,
) -> Iterator[Outcome]:
    """Yield how each of `tasks` ended, as they end.

    Args:
        until: monotonic seconds when waiting is over; None waits for ever.
        on_silence: told why nothing comes, once for each reason.
        nobody_s: seconds without a worker in the mesh that can run them, at most; None: any.

    Raises:
        WaitTimeoutError: `until` has come, or `nobody_s` are over, and some have not ended.
    """
    waiting = dict(enumerate(tasks))
    reasons: set[str] = set()
    heard = can_at = time.monotonic()
    while waiting:
        ended = list(_ended(waiting))
        now = time.monotonic()
        for outcome in ended:
            del waiting[outcome.index]
            heard = can_at = now
        yield from ended
        left, total = len(waiting), len(tasks)
        if waiting and until is not None and now >= until:
            why = reason_of(next(iter(waiting.values())))
            late = f"{left} of {total} tasks have not ended in time"
            raise WaitTimeoutError(f"{late}: {why}" if why else late)
        if waiting and now - heard >= SILENCE_S:
            heard = now
            reason = reason_of(next(iter(waiting.values())))
            if reason and reason not in reasons:
                reasons.add(reason)
                on_silence(reason)
            if not reason.startswith(_NOBODY):
                can_at = now
            elif nobody_s is not None and now - can_at >= nobody_s:
                raise WaitTimeoutError(
                    f"{left} of {total} tasks wait for {now - can_at:.0f} s: {reason}"
                )


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
    wait_s = OLDEST_WAIT_S
    for index, task in waiting.items():
        try:
            yield Outcome(index=index, result=task.result(timeout=wait_s))
        except WaitTimeoutError:
            pass
        except TaskError as error:
            yield Outcome(index=index, error=str(error) or error.code)
        wait_s = 0.0


def reason_of(task: Pending) -> str:
    """Return why nothing comes of a task, as far as anybody knows."""
    try:
        return str(task.status(timeout=WHY_S).get("reason") or "")
    except D8Error as error:
        return str(error)
