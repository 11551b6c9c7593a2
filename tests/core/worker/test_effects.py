"""What the worker's brain asks for: plain values that cannot be taken for results."""

from __future__ import annotations

from d8mesh.core.protocol import messages as m
from d8mesh.core.worker.effects import DROPPED, UNAVAILABLE, KeptResult, Start


def test_what_is_not_reported_is_no_kind_of_result() -> None:
    kinds = (m.FAILED, m.SUCCEEDED, m.REFUSED)
    assert {DROPPED, UNAVAILABLE}.isdisjoint(kinds)
    assert all(0 <= kind < 256 for kind in kinds)


def test_a_kept_result_knows_whose_it_is() -> None:
    kept = KeptResult("orch-1", "task", b"token", m.SUCCEEDED, b"x")
    assert kept.broker_id == "orch-1"
    assert Start([]).attempts == []
