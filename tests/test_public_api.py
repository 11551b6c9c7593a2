"""The public names: exactly these, each importable, none loading the whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import d8mesh

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = {
    "AsyncClient",
    "AsyncTask",
    "BrokerUnavailableError",
    "Client",
    "D8Error",
    "Task",
    "TaskCancelledError",
    "TaskContext",
    "TaskFailedError",
    "TaskRejectedError",
    "WaitTimeoutError",
    "Worker",
    "WrongLoopError",
    "__version__",
}
HEAVY = ("zmq", "zeroconf", "werkzeug", "waitress", "apsw", "rich", "ollama", "pygal", "logging")


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


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import d8mesh") & set(HEAVY) == set()


def test_importing_the_errors_loads_no_network() -> None:
    assert loaded_after("from d8mesh import D8Error, TaskFailedError") & set(HEAVY) == set()


def test_the_version_is_one_that_packaging_understands() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", d8mesh.__version__)


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert (ROOT / "d8mesh" / "py.typed").exists()
