"""Waiting for several tasks, as in `concurrent.futures`: of one client or of many."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, NamedTuple

from d8mesh.errors import D8Error, InvalidTaskError, TaskCancelledError, WaitTimeoutError
from d8mesh.nodes.client.completion_waiters import LOOK_AROUND_S
from d8mesh.nodes.client.handle import Task
from d8mesh.nodes.client.timeouts import countdown, takes_timeout_s

#: When `wait` returns; the same values as in `concurrent.futures`.
FIRST_COMPLETED: Final = "FIRST_COMPLETED"
FIRST_EXCEPTION: Final = "FIRST_EXCEPTION"
ALL_COMPLETED: Final = "ALL_COMPLETED"
#: A wait of this length is long enough to be told why it was in vain.
_REASON_S: Final = 0.1


class DoneAndNotDone(NamedTuple):
    """What `wait` returns."""

    done: set[Task]
    not_done: set[Task]


@takes_timeout_s
def as_completed(tasks: Iterable[Task], timeout: float | None = None) -> Iterator[Task]:
    """Return what yields the tasks as they are done, those first that are done now.

    A task that is given twice is yielded once.

    Args:
        tasks: of one client or of several.
        timeout: seconds from this call until all are to be done; None: as long as it takes.

    Raises:
        InvalidTaskError: something in `tasks` is no `Task`, or `timeout` no number of seconds.
        WaitTimeoutError: (when the next task is asked for) `timeout` is over.
    """
    left_s = countdown(timeout)
    return _yielded(_DoneTasks(tasks), left_s, timeout)


def _yielded(
    ended: _DoneTasks, left_s: Callable[[], float | None], timeout_s: float | None
) -> Iterator[Task]:
    count = len(ended.running)
    with ended:
        while ended.running:
            task = ended.next(left_s)
            if task is None:
                raise _overdue(ended, count, timeout_s)
            yield task


@takes_timeout_s
def wait(
    tasks: Iterable[Task], timeout: float | None = None, return_when: str = ALL_COMPLETED
) -> DoneAndNotDone:
    """Wait for tasks; return the sets of those that are done and of those that are not.

    Args:
        tasks: of one client or of several.
        timeout: how many seconds to wait at most; None: as long as it takes.
        return_when: `ALL_COMPLETED`; `FIRST_COMPLETED`: with the first that is done;
            `FIRST_EXCEPTION`: with the first that is done and not completed (a cancelled one
            does not count), else when all are done.

    Raises:
        InvalidTaskError: something in `tasks` is no `Task`, `timeout` no number of seconds, or
            there is no such `return_when`.
    """
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
        raise InvalidTaskError(
            f"return_when: saw {return_when!r:.80}, expected {ALL_COMPLETED}, {FIRST_COMPLETED} "
            f"or {FIRST_EXCEPTION}"
        )
    left_s = countdown(timeout)
    done: set[Task] = set()
    with _DoneTasks(tasks) as ended:
        is_over = False
        while ended.running:
            task = ended.next((lambda: 0.0) if is_over else left_s)
            if task is None:
                break
            done.add(task)
            is_over = is_over or return_when == FIRST_COMPLETED
            is_over = is_over or (return_when == FIRST_EXCEPTION and _has_failed(task))
        return DoneAndNotDone(done, ended.running)


def _has_failed(task: Task) -> bool:
    if task.submission.refusal is not None:  # nobody is told of it by this
        return True
    try:
        return task.exception(0) is not None
    except (TaskCancelledError, WaitTimeoutError):
        return False


class _DoneTasks:
    """Tasks, and the queue of those that are done; each costs the same, however many they are."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.running = set(tasks)
        for task in self.running:
            if not isinstance(task, Task):
                raise InvalidTaskError(
                    f"tasks: saw {type(task).__name__}, expected tasks of a Client (for futures "
                    "of an executor there is concurrent.futures, for an AsyncClient asyncio)"
                )
        self._done: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._nodes = {task.node for task in self.running}
        self._calls = {task: partial(self._done.put, task) for task in self.running}
        for task, call in self._calls.items():
            task.when_done(call)

    def __enter__(self) -> _DoneTasks:
        return self

    def __exit__(self, *_: object) -> None:
        for task in self.running:
            task.node.completions.discard(task.submission, task.index, self._calls[task])

    def next(self, left_s: Callable[[], float | None]) -> Task | None:
        """Wait for the next one that is done; None: there is none in time.

        Raises:
            D8Error: a callback of one of the clients would wait here, for ever.
        """
        while True:
            left = left_s()
            try:
                if self._done.empty():
                    for node in self._nodes:
                        node.check_is_elsewhere()
                task = self._done.get(
                    timeout=LOOK_AROUND_S if left is None else min(left, LOOK_AROUND_S)
                )
            except queue.Empty:
                if left is not None and left <= LOOK_AROUND_S:
                    return None
                continue
            self.running.discard(task)
            self._calls.pop(task, None)
            return task


def _overdue(ended: _DoneTasks, count: int, timeout_s: float | None) -> WaitTimeoutError:
    """Return the error of tasks that are not done in time; one of them says why."""
    task = next(iter(ended.running))
    overdue = WaitTimeoutError(
        f"{len(ended.running)} of {count} tasks are not done within {timeout_s:g} s, one of them "
        f"{task.id}"
    )
    try:
        task.result(_REASON_S)
    except WaitTimeoutError as error:
        overdue.__cause__ = error
    except D8Error:
        pass  # it has ended just now
    return overdue
