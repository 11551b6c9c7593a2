"""A short history of faults on real processes, and the parts of the fault runner itself."""

from __future__ import annotations

import json
import sys

import pytest

from d8mesh.cli import main
from tests.chaos import schedule

if not sys.platform.startswith("linux"):
    pytest.skip("processes are looked up in /proc", allow_module_level=True)

#: With the start of the processes, the drain and the end some 40 s on a slow machine.
MINUTES = 0.35
NOTHING = ("lost", "dup_results", "wrong", "stuck")


@pytest.mark.timeout(240)
def test_kills_and_pauses_lose_repeat_and_spoil_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["chaos", "--loopback", "--minutes", str(MINUTES), "--seed", "5", "--json"]
    code = main([*arguments, "--workers", "2", "--rate", "60"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: told[name] for name in NOTHING} == dict.fromkeys(NOTHING, 0), told
    assert code == 0
    assert told["submitted_acked"] == told["outcomes"] > 100
    assert told["kills"] >= 2


def test_the_same_seed_is_the_same_history_and_has_every_kind_early() -> None:
    first = schedule.draw(seed=9, seconds=120, has_network=True)
    assert first == schedule.draw(seed=9, seconds=120, has_network=True)
    assert first != schedule.draw(seed=10, seconds=120, has_network=True)
    kinds = {*schedule.WEIGHTS, *schedule.NETWORK_WEIGHTS}
    assert {event.kind for event in first[: len(kinds)]} == kinds
