"""`Client.map`: results in order, over any iterable, with a bound on what is in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from d8mesh.core.protocol.messages import SOFT_FRAME_BYTES
from d8mesh.errors import InvalidTaskError, TaskError, TaskRejectedError, WaitTimeoutError
from d8mesh.nodes.client.handle import Result, Task
from d8mesh.nodes.client.submissions import (
    SUBMISSION_TASKS,
    Kind,
    Post,
    SubmitOptions,
    cut,
    encode_data,
    group_of,
    kind_of,
    model_of,
    refuse_listening,
)
from d8mesh.nodes.client.submitter import Submitter
from d8mesh.nodes.client.timeouts import countdown, told_whole

if TYPE_CHECKING:
    from d8mesh.nodes.client.node import Client

#: Tasks of one `map` that are submitted and whose results nobody has taken yet: enough that the
#: fastest workers never wait, and few enough that an endless input does not fill the mesh.
IN_FLIGHT: Final = 20_000


class Mapped:
    """One `map`: what is in flight, and what is still to be submitted.

    What is at hand (it has a length) travels in whole submissions; what has to be waited for goes
    out one by one, as it comes.

    Args:
        client: whose tasks they are.
        submitter: makes the submissions.
        kind: the type of the tasks.
        datas: their data.
        options: as of `Client.map`.

    Raises:
        InvalidTaskError: a type or an option that is not allowed.
    """

    def __init__(
        self,
        client: Client,
        submitter: Submitter,
        kind: str,
        datas: Iterable[Mapping[str, Any]],
        options: SubmitOptions,
    ) -> None:
        refuse_listening(options)
        self._client, self._submitter, self._type = client, submitter, kind
        self._timeout_s = options.get("timeout")
        self._left_s = countdown(self._timeout_s)
        self._options: SubmitOptions = {**options, "timeout": None}
        self._kinds: dict[str, Kind] = {"": kind_of(kind, "", self._options)}
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
        self._payloads: list[bytes] = []
        self._size, self._model = 0, ""

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
            if self._is_at_hand and not self.keeps_errors:
                for model, payloads in cut(self._type, datas):
                    self._submit(model, payloads)
            else:
                for data in datas:
                    self._take(data)
                self._flush()
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
                self._client.hub.drop(each.submission, each.index)

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

    def _take(self, data: Mapping[str, Any]) -> None:
        try:
            payload = encode_data(data)
            model = model_of(self._type, data)
        except TaskRejectedError as error:
            if not self.keeps_errors:
                raise
            self._flush()
            self._waiting.append(error)
            return
        if not self._is_at_hand:
            place = self._submitter.append(self._kind(model), payload, self._timeout_s)
            self._waiting.append(Task(self._client, *place))
            return
        is_full = (
            len(self._payloads) == SUBMISSION_TASKS or self._size + len(payload) > SOFT_FRAME_BYTES
        )
        if is_full or model != self._model:
            self._flush()
        self._model = model
        self._payloads.append(payload)
        self._size += len(payload)

    def _flush(self) -> None:
        """Submit what has been taken, as a submission."""
        payloads, self._payloads, self._size = self._payloads, [], 0
        if payloads:
            self._submit(self._model, payloads)

    def _submit(self, model: str, payloads: list[bytes]) -> None:
        group = group_of(self._kind(model), payloads)
        submission = self._submitter.enqueue([group], self._left_s(), Post())
        self._waiting.extend(
            Task(self._client, submission, index) for index in range(submission.count)
        )

    def _kind(self, model: str) -> Kind:
        kind = self._kinds.get(model)
        if kind is None:
            kind = self._kinds[model] = kind_of(self._type, model, self._options)
        return kind


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
