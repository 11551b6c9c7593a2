"""Every error that d8mesh raises, each with its stable code.

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

    def __init_subclass__(cls, *, code: str = "", **more: object) -> None:
        super().__init_subclass__(**more)
        cls.code = code or cls.code  # a class without one of its own is told by its parent's

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle and copy with all attributes, whatever the constructor takes."""
        state = {name: _taken(value) for name, value in vars(self).items()}
        return _remade, (type(self), self.args, state)


class ConfigError(D8Error, ValueError, code="config.invalid"):
    """A setting has a value that is not allowed."""


class KeyFileError(ConfigError, code="config.key_file"):
    """A file with a secret key is unreadable, or readable by others."""


class ProtocolError(D8Error, code="protocol.invalid"):
    """The other side sent something that the protocol does not allow."""


class VersionError(ProtocolError, code="protocol.version"):
    """The other side speaks a protocol version that this one does not."""


# We broke our own rules, as `ProtocolError` says that the other side did.
class IllegalTransitionError(D8Error, code="core.transition"):
    """A fact does not fit the state of its task: this is a bug in d8mesh."""


class BrokerUnavailableError(D8Error, ConnectionError, code="broker.unavailable"):
    """No orchestrator answers: is one running, and is ORCHESTRATOR_URL right?"""


class WaitTimeoutError(D8Error, TimeoutError, code="wait.timeout"):
    """The time to wait is over; the task goes on and can be waited for again."""


class NodeClosedError(D8Error, code="node.closed"):
    """This client or worker has been closed: make a new one."""


class WrongLoopError(D8Error, RuntimeError, code="client.wrong_loop"):
    """An AsyncClient is used by coroutines of the one event loop that it began in."""


class TaskError(D8Error, code="task.error"):
    """Something is wrong with a task."""


class TaskRejectedError(TaskError, code="task.rejected"):
    """The task was refused; nothing of the submit was accepted."""


class InvalidTaskError(TaskRejectedError, ValueError, code="task.invalid"):
    """The task is not well formed."""


class PayloadTooLargeError(TaskRejectedError, code="task.too_large"):
    """The data of the task is larger than the limit."""


class QueueFullError(TaskRejectedError, code="queue.full"):
    """The queue is full: wait for tasks to finish, or raise TASK_QUEUE_SIZE."""


class DiskLowError(TaskRejectedError, code="disk.low"):
    """The orchestrator's disk is nearly full: no new tasks until there is room."""


class DrainingError(TaskRejectedError, code="broker.draining"):
    """The orchestrator is shutting down and takes no new tasks."""


class KeyConflictError(TaskRejectedError, code="key.conflict"):
    """The idempotency key was used before with another body."""


class UnknownTaskError(TaskError, LookupError, code="task.unknown"):
    """Task not found"""


class PrunedTaskError(UnknownTaskError, code="task.pruned"):
    """The task is finished and was pruned by the retention rules."""


class NotAcknowledgedError(TaskError, code="task.unacknowledged"):
    """Tasks that were submitted are not acknowledged: they may be lost."""

    def __init__(self, message: str | None = None, *, task_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        #: all of them, in the order of submitting; of some the acknowledgement alone may be lost
        self.task_ids: tuple[str, ...] = tuple(task_ids)


class TaskFailedError(TaskError, code="task.failed"):
    """The task failed."""

    def __init__(
        self, message: str | None = None, *, result: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self._result = dict(result or {})

    @property
    def result(self) -> Mapping[str, object]:
        """The recorded result object (``success`` is false, ``error`` says why)."""
        return MappingProxyType(self._result)


class TaskCancelledError(TaskError, code="task.cancelled"):
    """The task was cancelled."""


class WorkerError(D8Error, code="worker.error"):
    """Something is wrong with a worker."""


class UnknownWorkerError(WorkerError, LookupError, code="worker.unknown"):
    """Worker not registered: register again"""


class WorkerIdTakenError(WorkerError, code="worker.id_taken"):
    """Another live worker uses this worker id."""


class OutboxBrokenError(WorkerError, code="worker.outbox_broken"):
    """The outbox is damaged or of a newer version."""


class OutboxKeyError(WorkerError, code="worker.outbox_key"):
    """The key of the outbox's encrypted payloads is missing, or is another one."""


class HandlerError(WorkerError, code="worker.handler"):
    """A handler could not be registered or run."""


class BackendError(D8Error, code="backend.failed"):
    """The LLM service failed."""


# Busy or down: no credit now, and no failure of the task.
class BackendUnavailableError(BackendError, code="backend.unavailable"):
    """The LLM service does not answer."""


# The budget that travels with the service's offer says for how long.
class BackendLimitError(BackendUnavailableError, code="backend.limit"):
    """The account with the LLM service allows no more now."""


# As one that is down, but nothing is wrong with it: it is asked again soon.
class BackendBusyError(BackendUnavailableError, code="backend.busy"):
    """The LLM service answers as many requests as it can."""


class BackendMemoryError(BackendError, code="backend.memory"):
    """The model does not fit into the memory of the machine of the LLM service."""


class BackendStalledError(BackendError, code="backend.stalled"):
    """The LLM service stopped sending in the middle of an answer."""


class BackendDeadlineError(BackendError, code="backend.deadline"):
    """The LLM service was still answering when the attempt's time was over."""


class BackendAnswerError(BackendError, code="backend.answer"):
    """The LLM service sent something that is not an answer of its kind."""


class BackendTooLargeError(BackendError, code="backend.too_large"):
    """The question is too large for the LLM service, or its answer for us."""


class BackendMissingError(BackendError, code="backend.missing"):
    """The LLM service says that it has no such model, though it lists it."""


class ModelError(D8Error, code="model.error"):
    """A language model cannot be asked."""


class ModelUnknownError(ModelError, LookupError, code="model.unknown"):
    """No machine of the mesh has this model."""


class ModelUnfitError(ModelError, ValueError, code="model.unfit"):
    """The model cannot do what is asked of it."""


class ForbiddenError(D8Error, code="access.forbidden"):
    """This peer may not do that."""


class NotAdmittedError(ForbiddenError, code="access.pending"):
    """This key waits until somebody approves it at the orchestrator."""


class RevokedError(ForbiddenError, code="access.revoked"):
    """This key was let in once, and is not any more."""


class BannedError(ForbiddenError, code="access.banned"):
    """This key has sent too much that is not allowed: it may come again in some minutes."""


class MeshKeyError(ForbiddenError, code="access.key"):
    """The mesh has a D8_MESH_KEY, and it was not shown; or one side has none."""


class OrchestratorKeyError(ForbiddenError, code="access.orchestrator_key"):
    """Who answers shows another key or certificate than one that is trusted, or none."""


class MemberError(D8Error, code="member.error"):
    """Nothing can be changed about this key."""


class UnknownMemberError(MemberError, LookupError, code="member.unknown"):
    """No key of this fingerprint or name is known."""


class AmbiguousMemberError(MemberError, ValueError, code="member.ambiguous"):
    """Several keys have this name: give a fingerprint."""


class FloodError(D8Error, code="access.flood"):
    """Too many questions at the same time: ask again a little later."""


class JournalError(D8Error, code="journal.failed"):
    """The journal could not be written or read."""


class JournalHeldError(JournalError, code="journal.held"):
    """Another orchestrator uses this journal."""


class JournalBrokenError(JournalError, code="journal.broken"):
    """The journal is damaged or of a newer version."""


class JournalKeyError(JournalBrokenError, code="journal.key"):
    """The key of the journal's encrypted payloads is missing, or is another one."""


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
