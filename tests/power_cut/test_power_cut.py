"""What was acknowledged survives a power cut, and the check would notice if it did not."""

from __future__ import annotations

import pytest

from tests.power_cut.run import cut_power
from tests.power_cut.subjects import SUBJECTS

IMAGES = [20, pytest.param(200, marks=pytest.mark.slow)]


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_whatever_the_disk_kept_every_acknowledged_commit_is_there(
    subject: str, images: int
) -> None:
    report = cut_power(subject, images=images, seed=7, commits=150)
    assert report.images == images
    assert not report.faults, report.examples


@pytest.mark.parametrize("subject", SUBJECTS)
def test_power_lost_while_the_file_is_made_leaves_one_that_opens(subject: str) -> None:
    report = cut_power(subject, images=150, seed=3, commits=1)
    assert not report.faults, report.examples


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("synchronous", ["NORMAL", "OFF"])
def test_a_file_without_syncs_is_caught_losing(subject: str, synchronous: str) -> None:
    report = cut_power(subject, images=20, seed=7, synchronous=synchronous, commits=60)
    assert sum(report.faults.values()) >= 5, report
