"""Each bad input of the list in `docs/SECURITY.md` has a test that is named after its number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

HOME: Final = Path(__file__).parent
DOC: Final = HOME.parent.parent / "docs" / "SECURITY.md"
NUMBERS: Final = set(range(1, 43))


def test_every_number_has_a_test_and_stands_in_the_docs() -> None:
    code = "".join(path.read_text("utf-8") for path in HOME.glob("test_*.py"))
    assert {int(n) for n in re.findall(r"def test_(\d\d)_", code)} == NUMBERS
    told: set[int] = set()
    section = DOC.read_text("utf-8").partition("## Bad input")[2]
    for row in re.findall(r"^\| ([\d, –]+) \|", section, re.MULTILINE):
        for each in row.split(","):
            first, _, last = each.strip().partition("–")
            told |= set(range(int(first), int(last or first) + 1))
    assert told == NUMBERS
