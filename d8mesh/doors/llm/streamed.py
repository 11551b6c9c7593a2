"""One answer that is streamed while its tasks run: what they say goes on at once, in their order.

Before the first byte has left, another machine may take over unseen. After it nothing is begun
anew: what is lost on the way comes from the finished result, and what cannot be gone on with ends
with an error that names the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

from d8mesh.core.client.submission import TaskOutcome
from d8mesh.core.protocol.chat import Ending, Origin, Piece
from d8mesh.core.protocol.messages import Stream
from d8mesh.doors.llm.asked import LlmTask
from d8mesh.doors.llm.endings import TaskResult, completion_of_result, named, result_of
from d8mesh.doors.llm.forms import StreamForm
from d8mesh.doors.llm.said import SaidSoFar, objects_of, pieces_of
from d8mesh.doors.llm.wanted import SPEAKING_TYPES
from d8mesh.errors import BackendStalledError, D8Error, PrunedTaskError
from d8mesh.http.asgi import BodySink
from d8mesh.nodes.client.aio.followed import FollowedTask
from d8mesh.nodes.client.results import decoded

#: With a form that has comments the head goes out after so long without a word, and comments follow
#: when nothing was said from one look to the next.
SSE_SILENCE_S: Final = 10.0
#: Of one answer, written for a caller who does not read: beyond it the rest comes at the end.
MAX_UNREAD_BYTES: Final = 1024 * 1024


class StreamedAnswer:
    """One answer, of one or several tasks.

    Args:
        form: writes it.
        on_over: called once, when nothing is to be said any more or the caller has left.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        form: StreamForm,
        on_over: Callable[[StreamedAnswer], None],
    ) -> None:
        self._loop, self._form, self._on_over = loop, form, on_over
        self.speakers: list[Speaker] = []
        #: the idempotency key it is submitted with; empty: none
        self.key = ""
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._reader: asyncio.Future[None] | None = None
        #: a status may be told: somebody has spoken, or it is too late to wait for that
        self.is_begun = False
        #: all is said, or nothing can be; why
        self.is_over = False
        self.error: D8Error | None = None
        #: where it is written to, once somebody reads it
        self._sink: BodySink | None = None
        self._is_push_due = self._has_said = False
        #: the next look whether nothing was said for long
        self._look: asyncio.TimerHandle | None = None

    def followers_of(self, asked: Sequence[LlmTask]) -> Sequence[Speaker]:
        """Return who follows the tasks that are asked for, one for each."""
        self.speakers = [Speaker(self, index, each) for index, each in enumerate(asked)]
        return self.speakers

    def left(self) -> list[FollowedTask]:
        """Return the tasks that have not ended, as far as is known."""
        return [each.task for each in self.speakers if not each.is_done]

    @property
    def is_full(self) -> bool:
        """True while its caller does not read what is there."""
        return self._unread_bytes > MAX_UNREAD_BYTES

    # ------------------------------------------------------------------ said by the speakers

    def say(self, index: int, piece: Piece, origin: Origin | None) -> None:
        """Write a piece."""
        if not self.is_begun:
            self._begin()
        self._write(self._form.piece(index, piece, origin))

    def ended(self) -> None:
        """One of the tasks has ended well."""
        if self.is_over or any(each.result is None for each in self.speakers):
            return
        self._write(self._form.end())
        self._finish()

    def fail(self, error: D8Error) -> None:
        """It cannot be gone on with."""
        if self.is_over:
            return
        self.error = error
        if self.is_begun:
            self._write(self._form.broken(error))
        self._finish()

    # -------------------------------------------------------------------- for who reads it

    async def begun(self) -> None:
        """Wait until something can be told.

        Raises:
            D8Error: nothing can: the error is the answer.
        """
        if self._form.comment:
            self._look = self._loop.call_later(SSE_SILENCE_S, self._look_after_silence)
        while not self.is_begun and not self.is_over:
            await self._woken()
        if self.error is not None and not self.is_begun:
            raise self.error

    async def pushed(self, sink: BodySink) -> None:
        """See `PushedBody`."""
        self._sink, sink.on_room = sink, self._push
        try:
            self._push()
            while self._sink is not None:
                await self._woken()
        finally:
            self._sink = sink.on_room = None

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """See `PushedBody`."""
        while self._unread or not self.is_over:
            if self._unread:
                yield self._taken()
            else:
                await self._woken()

    def leave(self) -> None:
        """See `PushedBody`."""
        self._unread.clear()
        if not self.is_over:
            self._finish()

    # ------------------------------------------------------------------------------ helpers

    def _begin(self) -> None:
        self.is_begun = True
        self._write(self._form.begin([each.task.id for each in self.speakers]))

    def _look_after_silence(self) -> None:
        """Tell a reader that we live, if nothing was said since the last look."""
        if not self._has_said:
            if not self.is_begun:
                self._begin()
            self._write(self._form.comment)
        self._has_said = False
        self._look = self._loop.call_later(SSE_SILENCE_S, self._look_after_silence)

    def _write(self, content: bytes) -> None:
        if content:
            self._unread.append(content)
            self._unread_bytes += len(content)
            self._has_said = True
        self._have_sent()

    def _finish(self) -> None:
        self.is_over = True
        if self._look is not None:
            self._look.cancel()
        self._have_sent()
        self._on_over(self)

    def _have_sent(self) -> None:
        """Have what is written sent at the end of this turn of the loop, all of it together."""
        if self._sink is None:
            self._wake()
        elif not self._is_push_due:
            self._is_push_due = True
            self._loop.call_soon(self._push)

    def _push(self) -> None:
        self._is_push_due = False
        sink = self._sink
        if sink is None or sink.is_full or not (self._unread or self.is_over):
            return
        if self.is_over:
            self._sink = None
            self._wake()
        sink.write_part(self._taken(), has_more=not self.is_over)

    def _taken(self) -> bytes:
        unread, self._unread, self._unread_bytes = self._unread, [], 0
        return unread[0] if len(unread) == 1 else b"".join(unread)

    async def _woken(self) -> None:
        self._reader = self._loop.create_future()
        await self._reader

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Speaker:
    """Follows one task of a streamed answer."""

    __slots__ = (
        "_answer", "_asked", "_attempt", "_index", "_is_behind", "_next_seq", "_pieces_of", "_said",
        "has_failed", "has_spoken", "is_done", "result", "task",
    )  # fmt: skip

    task: FollowedTask

    def __init__(self, answer: StreamedAnswer, index: int, asked: LlmTask) -> None:
        self._answer, self._index, self._asked = answer, index, asked
        self._pieces_of = pieces_of if asked.type in SPEAKING_TYPES else objects_of
        self._attempt = self._next_seq = 0
        #: pieces are missing: what is not said yet comes from the result
        self._is_behind = False
        self._said = SaidSoFar()
        self.has_spoken = False
        #: it has ended, well or not; and its result
        self.is_done = False
        #: it will have no other end if it is asked for again
        self.has_failed = False
        self.result: TaskResult | None = None

    @property
    def said(self) -> SaidSoFar:
        """What it has said."""
        return self._said

    def accepted(self) -> None:
        """See `TaskFollower`."""

    def heard(self, stream: Stream) -> None:
        """See `TaskFollower`."""
        if self._answer.is_over or stream.attempt < self._attempt:
            return
        if stream.attempt > self._attempt:
            if self.has_spoken:
                self._answer.fail(self._broken_off())
                return
            self._attempt, self._next_seq, self._is_behind = stream.attempt, 0, False
        count = len(stream.payloads)
        known = self._next_seq - stream.first_seq
        if self._is_behind or known >= count:
            return
        if known < 0 or self._answer.is_full:
            self._is_behind = True
            return
        self._next_seq = stream.first_seq + count
        for piece, origin in self._pieces_of(stream.payloads[known:] if known else stream.payloads):
            if origin is not None:
                self._said.begun_by(origin)
            if piece.is_sign_of_life or piece.logprobs:
                self._said.add(piece)
                self.has_spoken = True
                self._answer.say(self._index, piece, self._said.origin)

    def ended(self, outcome: TaskOutcome) -> None:
        """See `TaskFollower`."""
        self.is_done = True
        if self._answer.is_over:
            return
        try:
            result = result_of(self.task.id, outcome)
            rest: Piece | None = Piece(ending=Ending(), extra=result)
            if self._asked.type in SPEAKING_TYPES:
                completion = completion_of_result(result)
                self._said.origin, self._said.model = completion.origin, completion.model
                rest = self._said.rest_of(completion)
        except D8Error as error:
            self.has_failed = not isinstance(error, PrunedTaskError)
            self.result = decoded(outcome.payload) if outcome.payload else None
            self._answer.fail(error)
            return
        if rest is None:
            self._answer.fail(self._broken_off())
            return
        self.has_spoken, self.result = True, result
        self._answer.say(self._index, rest, self._said.origin)
        self._answer.ended()

    def refused(self, error: D8Error) -> None:
        """See `TaskFollower`."""
        self.is_done = True
        self._answer.fail(named(error, self.task.id) if self.task.id else error)

    def _broken_off(self) -> D8Error:
        text = (
            "the answer broke off in the middle, and another attempt would begin anew (task "
            f"{self.task.id}, of which `tasks explain` tells why); ask again"
        )
        return named(BackendStalledError(text), self.task.id)
