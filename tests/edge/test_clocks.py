"""The clock that tells of sleep."""

from __future__ import annotations

from d8mesh.edge.clocks import slept_s


def test_awake_nothing_is_slept() -> None:
    before = slept_s()
    total = sum(range(1_000_000))
    assert total
    assert abs(slept_s() - before) < 1.0
