"""The locked dependencies fit what `pyproject.toml` asks for, each with its hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
TEXT: Final = (ROOT / "constraints.txt").read_text("utf-8")
_PIN: Final = re.compile(r"^([a-z0-9._-]+)==([0-9][0-9a-z.]*)((?:[^\n]*\\\n[^\n]+)+)", re.MULTILINE)


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _pins() -> dict[str, tuple[str, str]]:
    return {_name(name): (version, hashes) for name, version, hashes in _PIN.findall(TEXT)}


def test_every_dependency_is_locked_at_its_floor_or_above() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pins, seen = _pins(), 0
    for wanted in project["dependencies"]:
        name, _, floor = wanted.partition(">=")
        assert _number(pins[_name(name)][0]) >= _number(floor), wanted
        seen += 1
    assert seen >= 10


def test_everything_that_is_locked_has_hashes() -> None:
    pins = _pins()
    assert len(pins) == len(re.findall(r"^[A-Za-z0-9]", TEXT, re.MULTILINE))
    for name, (_, hashes) in pins.items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", hashes), name


def test_no_address_stands_in_it() -> None:
    assert not re.search(r"https?:|--find-links|--index-url|--extra-index-url|/opt/", TEXT)
