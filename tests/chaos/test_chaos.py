"""A short history of faults on real processes, and the parts of the fault runner itself."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from d8mesh.cli import main
from d8mesh.edge import failpoints
from tests.chaos import disk, schedule
from tests.chaos.traps import POINTS, Traps

if not sys.platform.startswith("linux"):
    pytest.skip("processes are looked up in /proc", allow_module_level=True)

#: With the start of the processes, the drain and the end some 40 s on a slow machine.
MINUTES = 0.35
NOTHING = ("lost", "dup_results", "wrong", "stuck")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_kills_and_pauses_lose_repeat_and_spoil_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["chaos", "--loopback", "--minutes", str(MINUTES), "--seed", "5", "--json"]
    code = main([*arguments, "--workers", "2", "--rate", "60"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: told[name] for name in NOTHING} == dict.fromkeys(NOTHING, 0), told
    assert code == 0
    assert told["submitted_acked"] == told["outcomes"] > 100
    assert told["kills"] >= 2


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_keys_that_are_shown_out_and_let_in_lose_repeat_and_spoil_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["chaos", "--loopback", "--approve", "--minutes", "0.5", "--seed", "3", "--json"]
    code = main([*arguments, "--workers", "3", "--rate", "60"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: told[name] for name in NOTHING} == dict.fromkeys(NOTHING, 0), told
    assert code == 0
    assert told["submitted_acked"] == told["outcomes"] > 100


def test_the_same_seed_is_the_same_history_and_has_every_kind_early() -> None:
    first = schedule.draw(seed=9, seconds=120, has_network=True, has_disk=True)
    assert first == schedule.draw(seed=9, seconds=120, has_network=True, has_disk=True)
    assert first != schedule.draw(seed=10, seconds=120, has_network=True, has_disk=True)
    kinds = {*schedule.WEIGHTS, *schedule.NETWORK_WEIGHTS, *schedule.DISK_WEIGHTS}
    assert {event.kind for event in first[: len(kinds)]} == kinds


def test_every_named_point_has_its_turn(tmp_path: Path) -> None:
    points = [point.name for points in POINTS.values() for point in points]
    assert sorted(points) == sorted(failpoints.FAILPOINTS)
    traps = Traps(tmp_path)
    for turn, expected in enumerate(POINTS["worker"]):
        name = f"worker-{turn}"
        assert traps.arm(name, "worker", 57) == expected
        assert traps.is_armed(name)
        file = Path(traps.setting(name)[1:])
        assert file.read_text("ascii") == f"{expected.name}:{1 + 57 % expected.most}"
        assert traps.sprung() == []
        file.unlink()
        assert traps.sprung() == [(name, expected)]
        assert traps.sprung() == []


def test_a_small_disk_is_full_when_it_is_filled(tmp_path: Path) -> None:
    if why := disk.unavailable():
        pytest.skip(why)
    with disk.Disk(tmp_path / "there", size_mb=16) as small:
        small.fill(leave_bytes=2_000_000)
        assert 1_000_000 < shutil.disk_usage(small.place).free <= 2_000_000
        small.fill(leave_bytes=0)
        with pytest.raises(OSError, match="No space"):
            (small.place / "more").write_bytes(bytes(1_000_000))
        small.empty()
        (small.place / "more").write_bytes(bytes(1_000_000))
