"""One answer that is given as a whole, once all its tasks have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from d8mesh.core.client.submission import TaskOutcome
from d8mesh.core.protocol.messages import Stream
from d8mesh.doors.llm.asked import LlmAnswer, LlmTask
from d8mesh.doors.llm.endings import TaskResult, answer_of, named
from d8mesh.errors import D8Error, PrunedTaskError
from d8mesh.nodes.client.aio.followed import FollowedTask
from d8mesh.nodes.client.results import decoded


class WholeAnswer:
    """Waits for the ends of some tasks; the first that fails ends the wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ready: asyncio.Future[None] = loop.create_future()
        self.parts: list[WholePart] = []
        #: the idempotency key it is submitted with; empty: none
        self.key = ""
        self._missing = 0

    def followers_of(self, asked: Sequence[LlmTask]) -> Sequence[WholePart]:
        """Return who follows the tasks that are asked for, one for each."""
        self.parts = [WholePart(self, each) for each in asked]
        self._missing = len(self.parts)
        return self.parts

    def left(self) -> list[FollowedTask]:
        """Return the tasks that have not ended, as far as is known."""
        return [each.task for each in self.parts if not each.is_done]

    @property
    def is_over(self) -> bool:
        """True once nothing is waited for."""
        return self._ready.done()

    async def answers(self) -> list[LlmAnswer]:
        """Wait for all.

        Raises:
            D8Error: one of them did not end well.
        """
        await self._ready
        return [each.answer for each in self.parts if each.answer is not None]

    def ended(self) -> None:
        """One more has ended well."""
        self._missing -= 1
        if not self._missing and not self._ready.done():
            self._ready.set_result(None)

    def fail(self, error: D8Error) -> None:
        """It cannot be gone on with."""
        if not self._ready.done():
            self._ready.set_exception(error)


class WholePart:
    """Follows one task of an answer."""

    __slots__ = ("_asked", "_whole", "answer", "has_failed", "is_done", "result", "task")

    task: FollowedTask

    def __init__(self, whole: WholeAnswer, asked: LlmTask) -> None:
        self._whole, self._asked = whole, asked
        self.answer: LlmAnswer | None = None
        #: it has ended, well or not; and its result
        self.is_done = False
        #: it will have no other end if it is asked for again
        self.has_failed = False
        self.result: TaskResult | None = None

    def accepted(self) -> None:
        """See `TaskFollower`."""

    def heard(self, stream: Stream) -> None:
        """See `TaskFollower`: what comes in between is of no interest."""

    def ended(self, outcome: TaskOutcome) -> None:
        """See `TaskFollower`."""
        self.is_done = True
        try:
            self.answer = answer_of(self.task.id, self._asked, outcome)
            self.result = self.answer.result
        except D8Error as error:
            self.has_failed = not isinstance(error, PrunedTaskError)
            self.result = decoded(outcome.payload) if outcome.payload else None
            self._whole.fail(error)
        else:
            self._whole.ended()

    def refused(self, error: D8Error) -> None:
        """See `TaskFollower`."""
        self.is_done = True
        self._whole.fail(named(error, self.task.id) if self.task.id else error)
