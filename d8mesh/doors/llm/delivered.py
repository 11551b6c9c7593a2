"""What a task asked and answered goes once its caller has it; its facts and figures stay."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import msgspec

from d8mesh.core.client.submission import TaskOutcome
from d8mesh.core.protocol.messages import Stream
from d8mesh.errors import D8Error
from d8mesh.nodes.client.aio.followed import FollowedTask
from d8mesh.nodes.client.results import decoded

#: What an answer says; the rest of a result are facts and figures.
SAID_FIELDS: Final = frozenset({"context", "extra", "logprobs", "output", "thinking", "tool_calls"})
#: Who sends an Idempotency-Key may ask again within this time.
KEYED_KEPT_S: Final = 600.0
#: Deliveries are told together, so long after the first of them.
TOLD_AFTER_S: Final = 0.05
_encode: Final = msgspec.msgpack.Encoder().encode


class TellsDelivered(Protocol):
    """The part of a node that this needs."""

    loop: asyncio.AbstractEventLoop

    def deliver(self, task_id: str, rest: bytes, keep_s: float = 0.0) -> None:
        """Tell the orchestrator; see `AsyncNode.deliver`."""


class HasResult(Protocol):
    """Who follows a task and has its result, once it has ended."""

    task: FollowedTask
    result: Mapping[str, Any] | None


class DeliveredAnswers:
    """Tells the orchestrator which tasks' texts may go.

    Args:
        keeps_all: nothing is erased, as D8_KEEP_CHATS says.
    """

    def __init__(self, mesh: TellsDelivered, *, keeps_all: bool) -> None:
        self._mesh, self._keeps_all = mesh, keeps_all
        #: task, what is kept of its result, and how long all of it is kept
        self._due: list[tuple[str, bytes, float]] = []

    def add(self, task_id: str, result: Mapping[str, Any], *, has_key: bool) -> None:
        """The caller of this task has its answer, or wants none any more."""
        if self._keeps_all or not task_id:
            return
        rest = {name: value for name, value in result.items() if name not in SAID_FIELDS}
        if not self._due:
            self._mesh.loop.call_later(TOLD_AFTER_S, self.tell)
        self._due.append((task_id, _encode(rest), KEYED_KEPT_S if has_key else 0.0))

    def when_ended(self, task: FollowedTask, *, has_key: bool) -> None:
        """Nobody waits for the end of this task any more: its texts go with it."""
        task.follower = LeftTask(self, task, has_key=has_key)

    def add_ended(self, followers: Iterable[HasResult], *, has_key: bool) -> None:
        """As `add` for those of them that have ended."""
        for each in followers:
            if each.result is not None:
                self.add(each.task.id, each.result, has_key=has_key)

    def tell(self) -> None:
        """Tell what is due: in one turn of the loop, so it travels together."""
        due, self._due = self._due, []
        for each in due:
            self._mesh.deliver(*each)


class LeftTask:
    """Follows a task whose caller has left."""

    __slots__ = ("_delivered", "_has_key", "task")

    def __init__(self, delivered: DeliveredAnswers, task: FollowedTask, *, has_key: bool) -> None:
        self._delivered, self.task, self._has_key = delivered, task, has_key

    def accepted(self) -> None:
        """See `TaskFollower`."""

    def heard(self, stream: Stream) -> None:
        """See `TaskFollower`."""

    def ended(self, outcome: TaskOutcome) -> None:
        """See `TaskFollower`."""
        result = decoded(outcome.payload) if outcome.payload else {}
        self._delivered.add(self.task.id, result, has_key=self._has_key)

    def refused(self, error: D8Error) -> None:
        """See `TaskFollower`."""
