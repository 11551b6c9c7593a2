"""The error tree: one root, stable codes, and a drawing that is true."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from types import MappingProxyType

import pytest

from d8mesh import errors
from d8mesh.errors import D8Error

#: The drawing's rows: branches of four characters each, the class, then maybe its code.
ROW = re.compile(r"(?P<branch>(?:│   |    |├── |└── )*)(?P<name>\w+Error)(?: +(?P<code>\w+\.\w+))?")


def tree_of(kind: type[D8Error]) -> Iterator[type[D8Error]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree_of(child)


ALL = list(tree_of(D8Error))


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """Read the drawing in the module's docstring: name -> (parent, code)."""
    assert errors.__doc__ is not None
    found: dict[str, tuple[str | None, str | None]] = {}
    above: list[str] = []
    for line in errors.__doc__.splitlines():
        match = ROW.match(line.removeprefix("    "))
        if match and line.startswith("    "):
            depth = len(match["branch"]) // 4
            del above[depth:]
            found[match["name"]] = (above[-1] if above else None, match["code"])
            above.append(match["name"])
    return found


def test_the_drawing_shows_the_real_tree() -> None:
    real = {
        kind.__name__: next(
            (base.__name__ for base in kind.__bases__ if issubclass(base, D8Error)), None
        )
        for kind in ALL
    }
    assert {name: parent for name, (parent, _) in drawn().items()} == real


def test_the_drawing_shows_the_real_codes() -> None:
    shown = {name: code for name, (_, code) in drawn().items() if code}
    assert shown == {kind.__name__: kind.code for kind in ALL if kind.__name__ in shown}


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
