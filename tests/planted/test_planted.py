"""The checks are checked: every planted fault must be caught by the test that is named for it."""

from __future__ import annotations

import builtins
import dis
import importlib
import inspect
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.planted.plants import PLANTS, Plant, planted

ROOT = Path(__file__).resolve().parents[2]
#: Interpreters that share the faults: a single one would be the last to end of all tests.
SHARES = 6
#: Half a minute each; beside other things on two slow cores some times that.
PATIENCE_S = 400


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE_S + 20)
@pytest.mark.parametrize("share", range(SHARES))
def test_every_planted_fault_is_caught_by_its_check(share: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.planted.run", str(share), str(SHARES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{len(PLANTS[share::SHARES])} caught" in done.stdout


def test_there_are_enough_and_each_has_a_name() -> None:
    assert len({plant.name for plant in PLANTS}) == len(PLANTS) >= 20


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_fault_is_wrong_only_in_what_it_does(plant: Plant) -> None:
    """One that names what is not there raises whatever it does, and shows nothing."""
    module_name, _, path = plant.where.partition(":")
    module = importlib.import_module(module_name)
    with planted(plant):
        function: Any = module
        for part in path.split("."):
            function = getattr(function, part)
        looked_up = set(_looked_up(inspect.unwrap(function).__code__))
    assert looked_up <= {*vars(module), *dir(builtins)}
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    for name in re.findall(r"\bself\.(\w+)", plant.wrong):
        assert re.search(rf"(self\.|def |    ){name}\b", source), name


def _looked_up(code: types.CodeType) -> Iterator[str]:
    """Yield the names that code takes from its module."""
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield each.argval
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _looked_up(inner)
