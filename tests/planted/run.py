"""Plant every fault in turn and run the check that must catch it: `-m tests.planted.run`.

All in one interpreter; a line for each that was not caught, and then exit code 1. With
`SHARE SHARES` as arguments only that share of them, counted from 0.
"""

from __future__ import annotations

import contextlib
import io
import sys

import pytest

from tests.planted.plants import PLANTS, Plant, planted


def is_caught(plant: Plant) -> bool:
    """Return whether the named check fails with the fault, and only then."""
    with planted(plant):
        return _run(plant.caught_by) is pytest.ExitCode.TESTS_FAILED


def _run(test: str) -> pytest.ExitCode:
    with contextlib.redirect_stdout(io.StringIO()):
        return pytest.ExitCode(pytest.main(["-q", "-x", "-p", "no:cacheprovider", test]))


def main(share: int = 0, shares: int = 1) -> int:
    """Plant a share of all; return the exit code."""
    plants = PLANTS[share::shares]
    checks = sorted({plant.caught_by for plant in plants})
    broken = [check for check in checks if _run(check) is not pytest.ExitCode.OK]
    uncaught = [plant.name for plant in plants if not is_caught(plant)]
    for check in broken:
        print(f"fails without any fault: {check}")
    for name in uncaught:
        print(f"not caught: {name}")
    print(f"{len(plants)} faults planted, {len(plants) - len(uncaught)} caught")
    return 1 if broken or uncaught else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
