"""Peers are measured one at a time; one that cannot run is told of, not hidden."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from bench import latency, throughput
from bench.contest import Contest
from bench.findings import Findings
from bench.plan import Plan
from d8mesh.errors import D8Error

TINY = Plan(rounds=2, scale=0.001, with_peers=True)


@dataclass
class Session:
    versions: dict[str, str] = field(default_factory=lambda: {"slow": "1.0"})
    keeps: str = "nothing"

    def throughput(self, tasks: int) -> float:
        return 50.0

    def latencies(self, count: int) -> list[float]:
        return [0.01] * count


@dataclass
class Peer:
    """A system that can be installed or not, and that runs or breaks."""

    name: str
    cannot: str = ""
    breaks: str = ""

    def prepare(self) -> None:
        if self.cannot:
            raise D8Error(self.cannot)

    @contextlib.contextmanager
    def running(self, workers: int, payload: bytes) -> Iterator[Session]:
        if self.breaks:
            raise D8Error(self.breaks)
        yield Session()


def contest(found: Findings) -> Contest:
    peers = [Peer("slow"), Peer("absent", cannot="no wheel"), Peer("broken", breaks="no port")]
    return Contest(found, {peer.name: peer for peer in peers})


def test_throughput_is_related_to_every_peer_that_runs() -> None:
    found = Findings()
    throughput.compare_peers(found, TINY, contest(found), 1, "64 B, 1 worker")
    throughput.relate(found)
    over = found.table(throughput.OVER_PEERS, "×")
    assert over.rows == ["slow"]
    assert len(over.samples("slow", "64 B, 1 worker")) == TINY.rounds
    assert "absent could not be measured here: no wheel" in found.notes
    assert "broken failed with 1 worker(s): no port" in found.notes
    assert "slow: slow 1.0; after a power cut: nothing" in found.notes


@pytest.mark.slow
def test_latency_is_measured_beside_every_peer_that_runs() -> None:
    found = Findings()
    latency.beside_peers(found, TINY, contest(found))
    table = found.table(latency.PEERS, "ms")
    assert table.rows == [latency.OURS, "slow"]
    assert table.samples("slow", "p50") == [10.0] * TINY.rounds
