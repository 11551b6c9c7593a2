"""Every error that d8mesh raises, each with its stable code.

::

    D8Error                         d8.error
    ├── ConfigError                 config.invalid        (also a ValueError)
    ├── ProtocolError               protocol.invalid      the *other* side broke the protocol
    │   └── VersionError            protocol.version
    ├── IllegalTransitionError      core.transition       *we* broke our own rules: a bug
    ├── BrokerUnavailableError      broker.unavailable    (also a ConnectionError)
    ├── WaitTimeoutError            wait.timeout          (also a TimeoutError)
    ├── NodeClosedError             node.closed
    ├── WrongLoopError              client.wrong_loop     (also a RuntimeError)
    ├── TaskError                   task.error
    │   ├── TaskRejectedError       task.rejected         nothing of the submit was accepted
    │   │   ├── InvalidTaskError    task.invalid
    │   │   ├── PayloadTooLargeError task.too_large
    │   │   ├── QueueFullError      queue.full
    │   │   ├── DiskLowError        disk.low
    │   │   ├── DrainingError       broker.draining
    │   │   └── KeyConflictError    key.conflict
    │   ├── UnknownTaskError        task.unknown
    │   │   └── PrunedTaskError     task.pruned
    │   ├── NotAcknowledgedError    task.unacknowledged   a client ended before all was on disk
    │   ├── TaskFailedError         task.failed
    │   └── TaskCancelledError      task.cancelled
    ├── WorkerError                 worker.error
    │   ├── UnknownWorkerError      worker.unknown
    │   ├── WorkerIdTakenError      worker.id_taken
    │   ├── OutboxBrokenError       worker.outbox_broken  exit code 4
    │   └── HandlerError            worker.handler
    ├── BackendError                backend.failed
    │   ├── BackendUnavailableError backend.unavailable   busy or down: no credit now, not a failure
    │   ├── BackendStalledError     backend.stalled
    │   ├── BackendDeadlineError    backend.deadline
    │   ├── BackendAnswerError      backend.answer        redirected, compressed, not JSON, cut off
    │   └── BackendTooLargeError    backend.too_large
    ├── ForbiddenError              access.forbidden
    ├── FloodError                  access.flood
    └── JournalError                journal.failed
        ├── JournalHeldError        journal.held          exit code 3
        └── JournalBrokenError      journal.broken        exit code 4

The docstring of a class is its default message. Codes appear on the wire, in JSON
answers and in logs; HTTP statuses live in ``http/answers.py``, exit codes in ``cli.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar


class D8Error(Exception):
    """d8mesh could not do what was asked."""

    code: ClassVar[str] = "d8.error"
    #: what an orchestrator said beside the message
    details: Mapping[str, object] = MappingProxyType({})

    #: the task it is about; empty: none, or not one alone
    task_id: str = ""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle and copy with all attributes, whatever the constructor takes."""
        state = {name: _taken(value) for name, value in vars(self).items()}
        return _remade, (type(self), self.args, state)


class ConfigError(D8Error, ValueError):
    """A setting has a value that is not allowed."""

    code = "config.invalid"


class ProtocolError(D8Error):
    """The other side sent something that the protocol does not allow."""

    code = "protocol.invalid"


class VersionError(ProtocolError):
    """The other side speaks a protocol version that this one does not."""

    code = "protocol.version"


class IllegalTransitionError(D8Error):
    """A fact does not fit the state of its task: this is a bug in d8mesh."""

    code = "core.transition"


class BrokerUnavailableError(D8Error, ConnectionError):
    """No orchestrator answers: is one running, and is ORCHESTRATOR_URL right?"""

    code = "broker.unavailable"


class WaitTimeoutError(D8Error, TimeoutError):
    """The time to wait is over; the task goes on and can be waited for again."""

    code = "wait.timeout"


class NodeClosedError(D8Error):
    """This client or worker has been closed: make a new one."""

    code = "node.closed"


class WrongLoopError(D8Error, RuntimeError):
    """An AsyncClient is used by coroutines of the one event loop that it began in."""

    code = "client.wrong_loop"


class TaskError(D8Error):
    """Something is wrong with a task."""

    code = "task.error"


class TaskRejectedError(TaskError):
    """The task was refused; nothing of the submit was accepted."""

    code = "task.rejected"


class InvalidTaskError(TaskRejectedError, ValueError):
    """The task is not well formed."""

    code = "task.invalid"


class PayloadTooLargeError(TaskRejectedError):
    """The data of the task is larger than the limit."""

    code = "task.too_large"


class QueueFullError(TaskRejectedError):
    """The queue is full: wait for tasks to finish, or raise TASK_QUEUE_SIZE."""

    code = "queue.full"


class DiskLowError(TaskRejectedError):
    """The orchestrator's disk is nearly full: no new tasks until there is room."""

    code = "disk.low"


class DrainingError(TaskRejectedError):
    """The orchestrator is shutting down and takes no new tasks."""

    code = "broker.draining"


class KeyConflictError(TaskRejectedError):
    """The idempotency key was used before with another body."""

    code = "key.conflict"


class UnknownTaskError(TaskError, LookupError):
    """Task not found"""

    code = "task.unknown"


class PrunedTaskError(UnknownTaskError):
    """The task is finished and was pruned by the retention rules."""

    code = "task.pruned"


class NotAcknowledgedError(TaskError):
    """Tasks that were submitted are not acknowledged: they may be lost."""

    code = "task.unacknowledged"

    def __init__(self, message: str | None = None, *, task_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        #: all of them, in the order of submitting; of some the acknowledgement alone may be lost
        self.task_ids: tuple[str, ...] = tuple(task_ids)


class TaskFailedError(TaskError):
    """The task failed."""

    code = "task.failed"

    def __init__(
        self, message: str | None = None, *, result: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self._result = dict(result or {})

    @property
    def result(self) -> Mapping[str, object]:
        """The recorded result object (``success`` is false, ``error`` says why)."""
        return MappingProxyType(self._result)


class TaskCancelledError(TaskError):
    """The task was cancelled."""

    code = "task.cancelled"


class WorkerError(D8Error):
    """Something is wrong with a worker."""

    code = "worker.error"


class UnknownWorkerError(WorkerError, LookupError):
    """Worker not registered: register again"""

    code = "worker.unknown"


class WorkerIdTakenError(WorkerError):
    """Another live worker uses this worker id."""

    code = "worker.id_taken"


class OutboxBrokenError(WorkerError):
    """The outbox is damaged or of a newer version."""

    code = "worker.outbox_broken"


class HandlerError(WorkerError):
    """A handler could not be registered or run."""

    code = "worker.handler"


class BackendError(D8Error):
    """The LLM service failed."""

    code = "backend.failed"


class BackendUnavailableError(BackendError):
    """The LLM service does not answer."""

    code = "backend.unavailable"


class BackendStalledError(BackendError):
    """The LLM service stopped sending in the middle of an answer."""

    code = "backend.stalled"


class BackendDeadlineError(BackendError):
    """The LLM service was still answering when the attempt's time was over."""

    code = "backend.deadline"


class BackendAnswerError(BackendError):
    """The LLM service sent something that is not an answer of its kind."""

    code = "backend.answer"


class BackendTooLargeError(BackendError):
    """The LLM service sent more than an answer may hold."""

    code = "backend.too_large"


class ForbiddenError(D8Error):
    """This peer may not do that."""

    code = "access.forbidden"


class FloodError(D8Error):
    """Too many questions at the same time: ask again a little later."""

    code = "access.flood"


class JournalError(D8Error):
    """The journal could not be written or read."""

    code = "journal.failed"


class JournalHeldError(JournalError):
    """Another orchestrator uses this journal."""

    code = "journal.held"


class JournalBrokenError(JournalError):
    """The journal is damaged or of a newer version."""

    code = "journal.broken"


def _taken(value: object) -> object:
    """Return an attribute of an error as another one may have it."""
    if isinstance(value, MappingProxyType):
        return dict(value)
    return list(value) if isinstance(value, list) else value  # its notes


def _remade(kind: type[D8Error], args: tuple[object, ...], state: Mapping[str, object]) -> D8Error:
    """Return a pickled or copied error again."""
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(state)
    return error


def error_of(code: str, message: str) -> D8Error:
    """Return the error that `code` names, as it came over the wire."""
    return _BY_CODE.get(code, D8Error)(message)


def _all_of(kind: type[D8Error]) -> dict[str, type[D8Error]]:
    found = {kind.code: kind}
    for child in kind.__subclasses__():
        found |= _all_of(child)
    return found


_BY_CODE = _all_of(D8Error)
