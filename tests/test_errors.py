"""The error tree: one root and stable codes."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from types import MappingProxyType

import pytest

from d8mesh import errors
from d8mesh.errors import D8Error


def tree_of(kind: type[D8Error]) -> Iterator[type[D8Error]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree_of(child)


ALL = list(tree_of(D8Error))


#: Each class with its parent and its code, which programs of others rely on.
TREE = {
    "D8Error": (None, "d8.error"),
    "ConfigError": ("D8Error", "config.invalid"),
    "KeyFileError": ("ConfigError", "config.key_file"),
    "ProtocolError": ("D8Error", "protocol.invalid"),
    "VersionError": ("ProtocolError", "protocol.version"),
    "IllegalTransitionError": ("D8Error", "core.transition"),
    "BrokerUnavailableError": ("D8Error", "broker.unavailable"),
    "WaitTimeoutError": ("D8Error", "wait.timeout"),
    "NodeClosedError": ("D8Error", "node.closed"),
    "WrongLoopError": ("D8Error", "client.wrong_loop"),
    "TaskError": ("D8Error", "task.error"),
    "TaskRejectedError": ("TaskError", "task.rejected"),
    "InvalidTaskError": ("TaskRejectedError", "task.invalid"),
    "PayloadTooLargeError": ("TaskRejectedError", "task.too_large"),
    "QueueFullError": ("TaskRejectedError", "queue.full"),
    "DiskLowError": ("TaskRejectedError", "disk.low"),
    "DrainingError": ("TaskRejectedError", "broker.draining"),
    "KeyConflictError": ("TaskRejectedError", "key.conflict"),
    "UnknownTaskError": ("TaskError", "task.unknown"),
    "PrunedTaskError": ("UnknownTaskError", "task.pruned"),
    "NotAcknowledgedError": ("TaskError", "task.unacknowledged"),
    "TaskFailedError": ("TaskError", "task.failed"),
    "TaskCancelledError": ("TaskError", "task.cancelled"),
    "WorkerError": ("D8Error", "worker.error"),
    "UnknownWorkerError": ("WorkerError", "worker.unknown"),
    "WorkerIdTakenError": ("WorkerError", "worker.id_taken"),
    "OutboxBrokenError": ("WorkerError", "worker.outbox_broken"),
    "HandlerError": ("WorkerError", "worker.handler"),
    "BackendError": ("D8Error", "backend.failed"),
    "BackendUnavailableError": ("BackendError", "backend.unavailable"),
    "BackendLimitError": ("BackendUnavailableError", "backend.limit"),
    "BackendBusyError": ("BackendUnavailableError", "backend.busy"),
    "BackendMemoryError": ("BackendError", "backend.memory"),
    "BackendStalledError": ("BackendError", "backend.stalled"),
    "BackendDeadlineError": ("BackendError", "backend.deadline"),
    "BackendAnswerError": ("BackendError", "backend.answer"),
    "BackendTooLargeError": ("BackendError", "backend.too_large"),
    "BackendMissingError": ("BackendError", "backend.missing"),
    "ModelError": ("D8Error", "model.error"),
    "ModelUnknownError": ("ModelError", "model.unknown"),
    "ModelUnfitError": ("ModelError", "model.unfit"),
    "ForbiddenError": ("D8Error", "access.forbidden"),
    "NotAdmittedError": ("ForbiddenError", "access.pending"),
    "RevokedError": ("ForbiddenError", "access.revoked"),
    "BannedError": ("ForbiddenError", "access.banned"),
    "MeshKeyError": ("ForbiddenError", "access.key"),
    "OrchestratorKeyError": ("ForbiddenError", "access.orchestrator_key"),
    "FloodError": ("D8Error", "access.flood"),
    "MemberError": ("D8Error", "member.error"),
    "UnknownMemberError": ("MemberError", "member.unknown"),
    "AmbiguousMemberError": ("MemberError", "member.ambiguous"),
    "JournalError": ("D8Error", "journal.failed"),
    "JournalHeldError": ("JournalError", "journal.held"),
    "JournalBrokenError": ("JournalError", "journal.broken"),
    "JournalKeyError": ("JournalBrokenError", "journal.key"),
    "OutboxKeyError": ("WorkerError", "worker.outbox_key"),
}


def test_parents_and_codes_stay_as_they_are() -> None:
    assert {
        kind.__name__: (
            next((base.__name__ for base in kind.__bases__ if issubclass(base, D8Error)), None),
            kind.code,
        )
        for kind in ALL
    } == TREE


def test_codes_are_unique_and_well_formed() -> None:
    codes = [kind.code for kind in ALL]
    assert len(set(codes)) == len(codes)
    assert [code for code in codes if not re.fullmatch(r"[a-z0-9]+\.[a-z_]+", code)] == []


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_docstring_is_the_default_message(kind: type[D8Error]) -> None:
    assert kind.__name__.endswith("Error")
    assert kind.__doc__
    assert str(kind()) == kind.__doc__.strip()
    assert str(kind("seen 3, expected 4")) == "seen 3, expected 4"


def test_every_error_class_of_the_module_is_in_the_tree() -> None:
    classes = {name for name, each in vars(errors).items() if isinstance(each, type)}
    raised = {name for name in classes if name.endswith("Error")}
    assert raised == {kind.__name__ for kind in ALL}


def test_a_failed_task_carries_its_result_unchangeable() -> None:
    given = {"success": False, "error": "no"}
    error = errors.TaskFailedError("no", result=given)
    given["error"] = "changed"
    assert dict(error.result) == {"success": False, "error": "no"}
    with pytest.raises(TypeError):
        error.result["error"] = "changed"  # type: ignore[index]


def test_errors_are_also_the_standard_ones_that_people_catch() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.BrokerUnavailableError, ConnectionError)
    assert issubclass(errors.WaitTimeoutError, TimeoutError)
    assert issubclass(errors.UnknownTaskError, LookupError)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "through",
    [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy],  # noqa: S301
    ids=["pickle", "copy", "deepcopy"],
)
def test_an_error_is_pickled_and_copied_with_all_it_carries(
    kind: type[D8Error], through: Callable[[D8Error], D8Error]
) -> None:
    error = kind("seen 3, expected 4")
    error.task_id, error.details = "a-1", {"error": "no", "holders": [1]}
    error.add_note("on Friday")
    if isinstance(error, errors.TaskFailedError):
        error = kind("seen 3, expected 4", result={"success": False, "deep": [1]})  # type: ignore[call-arg]
        error.task_id, error.details = "a-1", MappingProxyType({"error": "no", "holders": [1]})
        error.add_note("on Friday")
    again = through(error)
    assert type(again) is kind
    assert again is not error
    assert (str(again), again.args) == (str(error), error.args)
    assert (again.task_id, dict(again.details)) == ("a-1", dict(error.details))
    assert again.__notes__ == ["on Friday"]
    if isinstance(again, errors.TaskFailedError):
        assert dict(again.result) == {"success": False, "deep": [1]}


def test_an_error_of_no_single_task_names_none() -> None:
    assert D8Error().task_id == ""
