"""Puts tasks into submissions, on the threads of those who submit them.

Single tasks share the *open* submission as long as they are of one kind: the I/O thread takes it as
soon as it need not wait. Whatever is submitted as a whole travels in a submission of its own.
"""

from __future__ import annotations

from functools import partial

from d8mesh.core.client.submission import Submission, awaiting
from d8mesh.core.protocol.messages import SOFT_FRAME_BYTES, Group
from d8mesh.errors import QueueFullError
from d8mesh.nodes.client.groups import (
    SUBMISSION_TASKS,
    digest_of,
    filled,
    size_of,
)
from d8mesh.nodes.client.runner import ClientRunner
from d8mesh.nodes.client.timeouts import give_up


class Submitter:
    """Makes the submissions of one client, numbers their tasks, and finds a task's place.

    A task's place is its submission and its index there.

    Args:
        runner: hands them to the session on the I/O thread; the lock of its waiters guards what is
            here.

    Thread: any.
    """

    def __init__(self, runner: ClientRunner) -> None:
        self._session, self._waiters, self._runner = runner.session, runner.waiters, runner
        self._next_n = 0
        #: what the tasks of the open submission share
        self._shared: tuple[Group, float | None, bool, bool] | None = None

    def next_id(self) -> tuple[str, int]:
        """Return a session and a counter that make an unused task id."""
        with self._waiters.lock:
            self._runner.seal()  # the open submission's counters must stay consecutive
            n, self._next_n = self._next_n, self._next_n + 1
        return self._session.name, n

    def append(
        self,
        group: Group,
        payload: bytes,
        timeout_s: float | None,
        is_watched: bool = True,
        is_listened: bool = False,
    ) -> tuple[Submission, int]:
        """Put one task into the open submission, or begin a new one; return its place.

        Args:
            group: what it shares with others, without payloads.

        Raises:
            WaitTimeoutError: there was no room within `timeout_s`.
        """
        waiters, runner = self._waiters, self._runner
        shared = (group, timeout_s, is_watched, is_listened)
        # What nobody watches (REST) is refused at once when the queue is full.
        room_s = timeout_s if is_watched else 0.0
        with waiters.lock:
            waiters.wait_for_room(1, len(payload), timeout_s)
            submission = runner.open
            if (
                submission is not None
                and self._shared == shared
                and submission.count < SUBMISSION_TASKS
                and submission.size_bytes + len(payload) <= SOFT_FRAME_BYTES
            ):
                index = submission.count
                submission.grow(payload)
                if room_s is not None:  # else it waits for ever, as the others in it do
                    submission.give_up = give_up(room_s)
                self._next_n += 1
                if is_listened:
                    runner.stream_buffer.expect(submission, index)
                return submission, index
            runner.seal()
            submission = Submission(
                self._session.name,
                self._next_n,
                [filled(group, [payload])],
                is_watched=is_watched,
                is_listened=is_listened,
                give_up=give_up(room_s),
            )
            self._add(submission)
            runner.open, self._shared = submission, shared
        runner.wake()
        return submission, 0

    def enqueue(
        self,
        groups: list[Group],
        timeout_s: float | None,
        *,
        key: str = "",
        is_watched: bool = True,
        is_listened: bool = False,
    ) -> Submission:
        """Submit these as one submission.

        Args:
            is_watched: the outcomes are wanted; else it does not wait for room in a full queue.

        Raises:
            InvalidTaskError, PayloadTooLargeError: no message can carry them.
            WaitTimeoutError: there was no room within `timeout_s`.
        """
        count, size = size_of(groups)
        digest = digest_of(groups) if key else b""
        with self._waiters.lock:
            self._waiters.wait_for_room(count, size, timeout_s)
            self._runner.seal()
            submission = Submission(
                self._session.name,
                self._next_n,
                groups,
                key,
                digest,
                is_watched=is_watched or is_listened,
                is_listened=is_listened,
                give_up=give_up(timeout_s if is_watched else 0.0),
            )
            self._add(submission)
            self._runner.do(partial(self._session.submit, submission))
        return submission

    def send(
        self, groups: list[Group], key: str, digest: bytes, *, is_listened: bool
    ) -> Submission:
        """Submit these as one submission; a full queue is not waited for, and no output is kept.

        Args:
            digest: of what is asked with `key`, which may be empty.

        Raises:
            InvalidTaskError, PayloadTooLargeError: no message can carry them.
            QueueFullError: too much waits here to be sent.
        """
        count, size = size_of(groups)
        with self._waiters.lock:
            if not self._waiters.has_room(count, size):
                raise QueueFullError("the orchestrator takes tasks too slowly: come again")
            self._waiters.wait_for_room(count, size, 0.0)
            self._runner.seal()
            submission = Submission(
                self._session.name,
                self._next_n,
                groups,
                key,
                digest,
                is_listened=is_listened,
                give_up=give_up(0.0),
            )
            self._next_n += submission.count
            self._waiters.add(submission)
            self._runner.do(partial(self._session.submit, submission))
        return submission

    def watch(self, task_id: str) -> tuple[Submission, int]:
        """Return where the outcome of anybody's task will arrive; raises what `awaiting` does."""
        submission = awaiting(task_id)
        if (place := self._waiters.place_of(task_id)) is not None:
            return place  # its own, on its way: nobody else knows it
        self._runner.do(lambda now: self._session.watch(submission))
        return submission, 0

    def _add(self, submission: Submission) -> None:
        """Count a new submission. Under the lock."""
        self._next_n += submission.count
        self._waiters.add(submission)
        if submission.is_listened:
            for index in range(submission.count):
                self._runner.stream_buffer.expect(submission, index)
