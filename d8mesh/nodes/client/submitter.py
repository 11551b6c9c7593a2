"""Puts tasks into submissions, on the threads of those who submit them.

Single tasks share the *open* submission as long as they are of one kind: the I/O thread takes it as
soon as it need not wait. Whatever is submitted as a whole travels in a submission of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from d8mesh.core.client.session import ClientSession
from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.messages import Group
from d8mesh.errors import WaitTimeoutError
from d8mesh.nodes.client.completion_waiters import CompletionWaiters
from d8mesh.nodes.client.runner import ClientRunner
from d8mesh.nodes.client.submissions import (
    Kind,
    Post,
    SubmitOptions,
    cut,
    digest_of,
    group_of,
    kind_in,
    kind_of,
    size_of,
)
from d8mesh.nodes.client.timeouts import countdown, give_up, told_whole


class Submitter:
    """Makes the submissions of one client, and numbers their tasks.

    Args:
        session: what the submissions are handed to, on the I/O thread.
        board: where they are counted; its lock guards what is here.
        runner: the I/O thread.

    Thread: any.
    """

    def __init__(
        self, session: ClientSession, waiters: CompletionWaiters, runner: ClientRunner
    ) -> None:
        self._session, self._waiters, self._runner = session, waiters, runner
        self._next_n = 0
        #: what the tasks of the open submission share
        self._open_sort: tuple[Kind, float | None, bool, bool] | None = None

    def next_n(self) -> int:
        """Return a counter that no task has."""
        with self._waiters.lock:
            self._runner.seal()  # the open submission's counters must stay consecutive
            n, self._next_n = self._next_n, self._next_n + 1
        return n

    def append(
        self,
        kind: Kind,
        payload: bytes,
        timeout_s: float | None,
        is_watched: bool = True,
        is_listened: bool = False,
    ) -> tuple[Submission, int]:
        """Put one task into the open submission, or begin a new one; return its place.

        Raises:
            WaitTimeoutError: there was no room within `timeout_s`.
        """
        waiters, runner = self._waiters, self._runner
        sort = (kind, timeout_s, is_watched, is_listened)
        # What nobody watches (the shim) is refused at once when the queue is full.
        patience_s = timeout_s if is_watched else 0.0
        with waiters.lock:
            waiters.wait_for_room(1, len(payload), timeout_s)
            submission = runner.open
            if (
                submission is not None
                and self._open_sort == sort
                and waiters.grow(submission, len(payload))
            ):
                index = submission.count
                submission.count += 1
                submission.groups[0].payloads.append(payload)
                if patience_s is not None:  # else it waits for ever, as the others in it do
                    submission.give_up = give_up(patience_s)
                self._next_n += 1
                if is_listened:
                    runner.keeping.expect(submission, index)
                return submission, index
            runner.seal()
            group = group_of(kind, [payload])
            submission = self._new_submission(
                [group], 1, len(payload), patience_s, is_watched=is_watched
            )
            submission.is_listened = is_listened
            if is_listened:
                runner.keeping.expect(submission, 0)
            runner.open, self._open_sort = submission, sort
        runner.wake()
        return submission, 0

    def enqueue(self, groups: list[Group], timeout_s: float | None, post: Post) -> Submission:
        """Submit these as one submission.

        Raises:
            InvalidTaskError, PayloadTooLargeError: no message can carry them.
            WaitTimeoutError: there was no room within `timeout_s`.
        """
        count, size = size_of(groups)
        with self._waiters.lock:
            self._waiters.wait_for_room(count, size, timeout_s)
            self._runner.seal()
            patience_s = timeout_s if post.is_patient else 0.0
            submission = self._new_submission(
                groups, count, size, patience_s, is_watched=post.is_watched
            )
            submission.key, submission.is_listened = post.key, post.is_listened
            submission.digest = post.digest or (digest_of(groups) if post.key else b"")
            for index in range(count if post.is_listened else 0):
                self._runner.keeping.expect(submission, index)
            self._runner.do(partial(self._session.submit, submission))
        return submission

    def enqueue_many(
        self, kind: str, datas: Iterable[Mapping[str, Any]], options: SubmitOptions
    ) -> list[Submission]:
        """Submit tasks of one type in as many submissions as it takes; wait until all are settled.

        Raises:
            TaskRejectedError: one was refused, or something of it is not allowed.
            WaitTimeoutError: ``options["timeout"]`` is over.
        """
        timeout_s = options.get("timeout")
        left_s = countdown(timeout_s)
        post = Post(is_listened=bool(options.get("listen")))
        submissions: list[Submission] = []
        try:
            for model, payloads in cut(kind, datas):
                group = group_of(kind_of(kind, model, options), payloads)
                submissions.append(self.enqueue([group], left_s(), post))
            for submission in submissions:
                self._waiters.wait_settled(submission, left_s())
        except WaitTimeoutError as error:
            raise told_whole(error, timeout_s) from None
        return submissions

    def place(
        self, groups: Sequence[Group], timeout_s: float | None, post: Post
    ) -> tuple[Submission, int | None]:
        """Submit these, all or nothing; return their submission, and a single one's place in it.

        Raises:
            As of `enqueue`.
        """
        count, _ = size_of(groups)
        if count == 1 and not post.key and not post.is_listened:
            # It travels with what others submit at the same time.
            kind, payload = kind_in(groups[0]), groups[0].payloads[0]
            return self.append(kind, payload, timeout_s, post.is_watched)
        return self.enqueue(list(groups), timeout_s, post), None

    def _new_submission(
        self,
        groups: list[Group],
        count: int,
        size: int,
        timeout_s: float | None,
        *,
        is_watched: bool,
    ) -> Submission:
        first, self._next_n = self._next_n, self._next_n + count
        submission = Submission(self._session.name, first, groups, count, is_watched=is_watched)
        submission.give_up = give_up(timeout_s)
        self._waiters.add(submission, size)
        return submission
