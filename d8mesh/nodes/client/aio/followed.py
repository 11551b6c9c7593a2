"""Tasks that are followed by calls: no future, buffer or coroutine for each of their events.

For who has thousands under way. What is submitted in one turn of the loop travels together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from d8mesh.core.client.effects import Answered
from d8mesh.core.client.submission import Submission, TaskOutcome
from d8mesh.core.protocol.messages import SOFT_FRAME_BYTES, Group, Query, Stream
from d8mesh.errors import D8Error, error_of
from d8mesh.nodes.client.questions import Questions
from d8mesh.nodes.client.runner import ClientRunner
from d8mesh.nodes.client.submitter import Submitter

#: Tasks that travel together at most: what is refused is so for all of them.
TOGETHER: Final = 64


class TaskFollower(Protocol):
    """Is told of one task, on the loop."""

    #: the one it is told of
    task: FollowedTask

    def accepted(self) -> None:
        """It is on the orchestrator's disk; of a repeated key, the task of the first time is."""

    def heard(self, stream: Stream) -> None:
        """Some of its partial output has come, maybe not for the first time."""

    def ended(self, outcome: TaskOutcome) -> None:
        """It has ended; nothing follows."""

    def refused(self, error: D8Error) -> None:
        """It was not accepted; nothing follows."""


class FollowedTask:
    """One task, and who follows it, which may change."""

    __slots__ = ("follower", "group", "index", "is_dropped", "submission")

    def __init__(self, group: Group, follower: TaskFollower) -> None:
        self.group, self.follower = group, follower
        follower.task = self
        self.submission: Submission | None = None
        self.index = 0
        #: cancelled before it was submitted
        self.is_dropped = False

    @property
    def id(self) -> str:
        """Its id; empty until it is submitted, another one once a repeated key is known as such."""
        return "" if self.submission is None else self.submission.task_id(self.index)

    @property
    def is_repeat(self) -> bool:
        """True if its key was used before."""
        return self.submission is not None and self.submission.is_repeat

    def hear(self, stream: Stream | None) -> None:
        """Pass on what was heard; its end is told by its outcome."""
        if stream is not None:
            self.follower.heard(stream)


class FollowedTasks:
    """Submits tasks and tells their followers, each on the loop in the turn that brought it.

    Args:
        runner, submitter, questions: of the same client.

    Thread: the loop's.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        runner: ClientRunner,
        submitter: Submitter,
        questions: Questions,
    ) -> None:
        self._loop, self._runner = loop, runner
        self._submitter, self._questions = submitter, questions
        #: what travels together in this turn: heard, and not heard
        self._fresh: dict[bool, list[FollowedTask]] = {True: [], False: []}
        self._fresh_bytes = {True: 0, False: 0}
        self._under_way: dict[Submission, list[FollowedTask]] = {}

    def submit(self, tasks: Sequence[FollowedTask], *, is_heard: bool) -> None:
        """Have these submitted, before the loop's next turn is over."""
        size = sum(len(each.group.payloads[0]) for each in tasks)
        fresh = self._fresh[is_heard]
        is_much = len(fresh) + len(tasks) > TOGETHER
        if fresh and (is_much or self._fresh_bytes[is_heard] + size > SOFT_FRAME_BYTES):
            self._send_fresh(is_heard)
            fresh = self._fresh[is_heard]
        if not fresh:
            self._loop.call_soon(self._send_fresh, is_heard)
        fresh.extend(tasks)
        self._fresh_bytes[is_heard] += size

    def submit_keyed(
        self, tasks: Sequence[FollowedTask], key: str, digest: bytes, *, is_heard: bool
    ) -> None:
        """Submit these as one, under an idempotency key."""
        self._send(list(tasks), is_heard=is_heard, key=key, digest=digest)

    def cancel_soon(self, task: FollowedTask) -> None:
        """Cancel a task: the orchestrator is told in this turn, if it knows the task."""
        submission = task.submission
        if submission is None:
            task.is_dropped = True
        elif submission.is_known(task.index) or self._runner.is_closed:
            return
        elif submission.sent or submission.is_settled:  # what is asked follows it
            self._ask_to_cancel(task)
        else:
            self._when_settled(submission, partial(self.cancel_soon, task))

    def end(self, error: D8Error) -> None:
        """Tell all followers that nothing comes any more."""
        under_way, self._under_way = self._under_way, {}
        for submission, tasks in under_way.items():
            self._runner.on_arrival.pop(submission, None)
            for each in tasks:
                if not submission.is_known(each.index):
                    each.follower.refused(error)

    # -------------------------------------------------------------------------- sending

    def _send_fresh(self, is_heard: bool) -> None:
        tasks = [each for each in self._fresh[is_heard] if not each.is_dropped]
        self._fresh[is_heard], self._fresh_bytes[is_heard] = [], 0
        if tasks:
            self._send(tasks, is_heard=is_heard)

    def _send(
        self, tasks: list[FollowedTask], *, is_heard: bool, key: str = "", digest: bytes = b""
    ) -> None:
        groups = [each.group for each in tasks]
        try:
            submission = self._submitter.send(groups, key, digest, is_listened=is_heard)
        except D8Error as error:
            for each in tasks:
                each.follower.refused(error)
            return
        submission.fresh = []
        self._under_way[submission] = tasks
        for index, each in enumerate(tasks):
            each.submission, each.index = submission, index
            if is_heard:
                self._runner.listeners.add(submission.task_id(index), each.hear)
        self._runner.on_arrival[submission] = partial(self._arrived, submission)
        self._when_settled(submission, partial(self._settled, submission))

    def _ask_to_cancel(self, task: FollowedTask) -> None:
        request = self._questions.number()
        self._runner.on_answer[request] = _ignore
        question = Query(request, "cancel", {"id": task.id})
        self._runner.do(lambda now: self._runner.session.ask(question, now))

    def _when_settled(self, submission: Submission, then: Callable[[], None]) -> None:
        self._runner.on_settled.setdefault(submission, []).append(then)

    # ------------------------------------------------------------------------- what comes

    def _settled(self, submission: Submission) -> None:
        tasks = self._under_way.get(submission, [])
        if submission.refusal is not None:
            self._under_way.pop(submission, None)
            self._runner.on_arrival.pop(submission, None)
            submission.is_told = True
            refusal = submission.refusal
            for each in tasks:
                self._runner.listeners.remove(
                    f"{submission.session}-{submission.first + each.index}", each.hear
                )
                each.follower.refused(error_of(refusal.code, refusal.message))
            return
        for each in tasks:
            if submission.accepted_as is not None and submission.is_listened:
                self._runner.listeners.add(each.id, each.hear)
            each.follower.accepted()

    def _arrived(self, submission: Submission) -> None:
        tasks, fresh = self._under_way[submission], submission.fresh or []
        submission.fresh = []
        if submission.missing:
            self._runner.on_arrival[submission] = partial(self._arrived, submission)
        else:
            del self._under_way[submission]
        for index in fresh:
            outcome = submission.outcome(index)
            submission.payloads[index] = None
            tasks[index].follower.ended(outcome)


def _ignore(answered: Answered | None) -> None:
    """Whether it was cancelled, its outcome tells."""
