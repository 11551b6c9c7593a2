"""The measurement of encrypted payloads runs, and its figures are figures."""

from __future__ import annotations

from bench.sealed import journals, sealing_s


def test_both_sides_take_all_tasks() -> None:
    for side in journals(1, 1, 2):
        assert side.batched > 0
        assert 0 < side.single_s < 60


def test_a_large_payload_takes_longer_to_seal_than_a_small_one() -> None:
    assert 0 < sealing_s(100) < sealing_s(4_000_000, turns=20)
