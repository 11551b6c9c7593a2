"""The public names: exactly these, each importable, none loading the whole."""

from __future__ import annotations

import builtins
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import d8mesh

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = {
    "ALL_COMPLETED",
    "AsyncClient",
    "AsyncTask",
    "BrokerUnavailableError",
    "Client",
    "Config",
    "ConfigError",
    "D8Error",
    "DiskLowError",
    "DoneAndNotDone",
    "DrainingError",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "FloodError",
    "ForbiddenError",
    "HandlerError",
    "InvalidTaskError",
    "KeyConflictError",
    "Missed",
    "NodeClosedError",
    "NotAcknowledgedError",
    "OutboxBrokenError",
    "PayloadTooLargeError",
    "ProtocolError",
    "PrunedTaskError",
    "QueueFullError",
    "RESTARTED",
    "Reject",
    "SubmitOptions",
    "Task",
    "TaskCancelledError",
    "TaskContext",
    "TaskError",
    "TaskExecutor",
    "TaskFailedError",
    "TaskFuture",
    "TaskRejectedError",
    "UnknownTaskError",
    "VersionError",
    "WaitTimeoutError",
    "Worker",
    "WorkerError",
    "WrongLoopError",
    "__version__",
    "as_completed",
    "wait",
}
#: What people call and read the docstrings of.
SPOKEN: list[Any] = [
    d8mesh.Client,
    d8mesh.Task,
    d8mesh.TaskContext,
    d8mesh.TaskExecutor,
    d8mesh.TaskFuture,
    d8mesh.Worker,
    d8mesh.as_completed,
    d8mesh.wait,
]
HEAVY = ("zmq", "zeroconf", "werkzeug", "httptools", "apsw", "rich", "pygal", "logging")


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return set(done.stdout.split())


def test_the_public_names_are_exactly_these() -> None:
    assert set(d8mesh.__all__) == PUBLIC
    assert len(d8mesh.__all__) == len(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(d8mesh, name).__class__ is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Borker'"):
        d8mesh.__getattr__("Borker")


def test_the_public_names_are_what_dir_shows() -> None:
    assert dir(d8mesh) == sorted(PUBLIC)


def _docstrings(spoken: Any) -> Iterator[tuple[str, str]]:
    yield spoken.__name__, spoken.__doc__ or ""
    for name, member in vars(spoken).items():
        if not name.startswith("_") and inspect.isroutine(member):
            yield f"{spoken.__name__}.{name}", member.__doc__ or ""


@pytest.mark.parametrize("spoken", SPOKEN, ids=lambda spoken: str(spoken.__name__))
def test_what_docstrings_name_is_public(spoken: Any) -> None:
    builtin = {name for name in vars(builtins) if name.endswith("Error")}
    unknown = {
        (place, word)
        for place, text in _docstrings(spoken)
        for word in re.findall(r"\b(?:\w+Error|RESTARTED|[A-Z]+_(?:COMPLETED|EXCEPTION))\b", text)
        + [first for first in re.findall(r"`([A-Z]\w+)[`.]", text) if first != "Stream"]
        if word not in PUBLIC | builtin
    }
    assert unknown == set()


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import d8mesh") & set(HEAVY) == set()


def test_importing_the_errors_loads_no_network() -> None:
    assert loaded_after("from d8mesh import D8Error, TaskFailedError") & set(HEAVY) == set()


def test_the_version_is_one_that_packaging_understands() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", d8mesh.__version__)


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert (ROOT / "d8mesh" / "py.typed").exists()
