"""`Client.map`: results in order, over any iterable, with a bound on what is in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sized
from itertools import islice
from typing import Any, Final

from d8mesh.errors import InvalidTaskError, TaskError, TaskRejectedError, WaitTimeoutError
from d8mesh.nodes.client.groups import (
    SUBMISSION_TASKS,
    SubmitOptions,
    Template,
    refuse_listening,
)
from d8mesh.nodes.client.handle import NodeOwner, Task
from d8mesh.nodes.client.results import Result
from d8mesh.nodes.client.timeouts import countdown, told_whole

#: Tasks of one `map` that are submitted and whose results nobody has taken yet: enough that the
#: fastest workers never wait, and few enough that an endless input does not fill the mesh.
IN_FLIGHT: Final = 20_000


class Mapped:
    """One `map`: what is in flight, and what is still to be submitted.

    What is at hand (it has a length) travels in whole submissions; what has to be waited for goes
    out one by one, as it comes.

    Args:
        client: whose tasks they are.
        kind: the type of the tasks.
        datas: their data.
        options: as of `Client.map`.

    Raises:
        InvalidTaskError: a type or an option that is not allowed.
    """

    def __init__(
        self,
        client: NodeOwner,
        kind: str,
        datas: Iterable[Mapping[str, Any]],
        options: SubmitOptions,
    ) -> None:
        refuse_listening(options)
        self._client, self._node = client, client.node
        self._timeout_s = options.get("timeout")
        self._left_s = countdown(self._timeout_s)
        self._template = Template(kind, {**options, "timeout": None})
        try:
            self._datas = iter(datas)
        except TypeError:
            seen = type(datas).__name__
            raise InvalidTaskError(f"datas: saw {seen}, expected an iterable of dicts") from None
        self._is_at_hand, self._is_over = isinstance(datas, Sized), False
        self.in_flight = IN_FLIGHT
        self.keeps_errors = False
        #: in order; an error stands for a task that could not be submitted
        self._waiting: deque[Task | TaskError] = deque()

    def start(self) -> Generator[Result | TaskError, None, None]:
        """Submit the first tasks; return what yields the outcomes. Raises: as of `fill`."""
        try:
            self.fill()
            # What is at hand has all been sent by now: fewer wake-ups until it is acknowledged.
            last = self._waiting[-1] if self._waiting else None
            if self._is_at_hand and isinstance(last, Task) and not self.keeps_errors:
                last.wait_accepted(self._left_s())
        except WaitTimeoutError as error:
            self.cancel()
            raise told_whole(error, self._timeout_s) from None
        except BaseException:
            self.cancel()
            raise
        return self.results()

    def fill(self) -> None:
        """Submit as much as may be in flight.

        Raises:
            InvalidTaskError, PayloadTooLargeError: data that cannot be submitted.
            WaitTimeoutError: there was no room in time.
        """
        room = self.in_flight - len(self._waiting)
        if self._is_over or room < 1:
            return
        datas = islice(self._datas, room)
        try:
            if self._is_at_hand:
                on_error = self._waiting.append if self.keeps_errors else None
                for group in self._template.cut(datas, on_error):
                    submission = self._node.submitter.enqueue([group], self._left_s())
                    self._waiting += [
                        Task(self._client, submission, index) for index in range(submission.count)
                    ]
            else:
                for data in datas:
                    self._append(data)
        except WaitTimeoutError as error:
            raise told_whole(error, self._timeout_s) from None
        self._is_over = len(self._waiting) < self.in_flight  # each of the datas is one of them

    def results(self) -> Generator[Result | TaskError, None, None]:
        """Yield the outcomes in order; what is left when that ends early is cancelled."""
        waiting = self._waiting
        try:
            while self._refill() or waiting:
                # What is at hand is looked at once a submission, what is waited for each time.
                for _ in range(self._step if self._is_at_hand else 1):
                    if not waiting:
                        break
                    yield self._outcome(waiting.popleft())
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Cancel what is in flight."""
        waiting, self._waiting, self._is_over = self._waiting, deque(), True
        for each in waiting:
            if isinstance(each, Task):
                self._node.drop(each.submission, each.index)

    def _refill(self) -> bool:
        """Keep the workers busy: in submissions of a good size, or when nothing else is to do.

        Returns:
            Whether there is more to come.
        """
        if self._is_over:
            return False
        head = self._waiting[0] if self._waiting else None
        is_idle = head is None or (
            not self._is_at_hand and isinstance(head, Task) and not head.done()
        )
        if is_idle or self.in_flight - len(self._waiting) >= self._step:
            self.fill()
        return not self._is_over

    @property
    def _step(self) -> int:
        return min(SUBMISSION_TASKS, max(1, self.in_flight // 2))

    def _outcome(self, each: Task | TaskError) -> Result | TaskError:
        if isinstance(each, TaskError):
            return each
        try:
            return each.take(self._left_s())
        except WaitTimeoutError as error:
            self._waiting.appendleft(each)
            raise told_whole(error, self._timeout_s) from None
        except TaskError as error:
            if not self.keeps_errors:
                raise
            return error

    def _append(self, data: Mapping[str, Any]) -> None:
        """Submit one task with whatever else is submitted at the same time."""
        try:
            shared, payload = self._template.of(data)
        except TaskRejectedError as error:
            if not self.keeps_errors:
                raise
            self._waiting.append(error)
            return
        place = self._node.submitter.append(shared, payload, self._timeout_s)
        self._waiting.append(Task(self._client, *place))


def window_of(in_flight: int | None) -> int:
    """Return how many tasks of a map may be in flight.

    Raises:
        InvalidTaskError: it is no number of tasks.
    """
    if in_flight is None:
        return IN_FLIGHT
    if type(in_flight) is not int or in_flight < 1:
        raise InvalidTaskError(f"in_flight: saw {in_flight!r:.80}, expected 1 or more tasks")
    return in_flight
