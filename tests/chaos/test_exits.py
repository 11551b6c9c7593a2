"""A short run of programs that connect, submit and end."""

from __future__ import annotations

import json

import pytest

from tests.chaos import exits


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_no_program_that_ends_loses_a_task_without_a_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exits.main(["--programs", "90", "--processes", "9", "--seed", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["programs"] == 99
    assert told["restarts"] >= 1
    assert told["submitted"] >= 99
    assert told["lost"] == 0
    assert told["in_journal"] >= told["submitted"] - told["reported"]
