"""Results without an acknowledgement: counted, on the disk once, owed though a link be gone."""

from __future__ import annotations

from d8mesh.core.protocol.messages import SUCCEEDED
from d8mesh.core.worker.broker_session import BrokerSession
from d8mesh.core.worker.effects import Forget, Keep, KeptResult
from d8mesh.core.worker.kept_results import MAX_KEPT_BYTES, MAX_KEPT_RESULTS, KeptResults


def row(number: int, broker_id: str = "a") -> KeptResult:
    return KeptResult(broker_id, f"t{number}", bytes([number]), SUCCEEDED, b"xy")


def link(*numbers: int) -> BrokerSession:
    broker = BrokerSession("link", broker_id="a")
    for number in numbers:
        broker.collect(f"t{number}", bytes([number]), SUCCEEDED, b"xy")
    return broker


def test_what_is_on_the_disk_is_not_written_again_and_is_deleted_once() -> None:
    kept = KeptResults([])
    assert kept.keep([]) == []
    assert kept.keep([row(1)]) == [Keep([row(1)])]
    broker = link(1, 2)
    assert kept.save(broker) == [Keep([row(2)])]
    assert kept.save(broker) == []
    (batch,) = broker.waiting
    assert kept.forget([batch]) == [Forget([b"\1", b"\2"])]
    assert kept.forget([batch]) == []


def test_results_of_a_link_that_is_gone_are_owed_and_handed_to_the_next() -> None:
    kept = KeptResults([row(1), row(2, "b")])
    gone = link(3)
    assert kept.strand(gone) == [Keep([row(3)])]
    assert (gone.waiting, gone.unacknowledged) == ([], {})
    assert kept.owed() == [row(1), row(3), row(2, "b")]
    again = link()
    kept.hand_over(again)
    assert again.results() == [row(1), row(3)]
    assert kept.owed() == [row(2, "b")]


def test_too_many_or_too_large_results_are_full_until_some_are_forgotten() -> None:
    broker = link(1)
    for results, size_bytes in ((MAX_KEPT_RESULTS - 1, 0), (1, MAX_KEPT_BYTES - 2)):
        kept = KeptResults([])
        kept.count(results, size_bytes)
        before = kept.is_full
        kept.count(1, 2)
        full = kept.is_full
        kept.forget(broker.waiting)
        assert (before, full, kept.is_full) == (False, True, False)
