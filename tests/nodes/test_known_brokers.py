"""Who says something else of an orchestrator does not have forgotten where it is."""

from __future__ import annotations

from pathlib import Path

from d8mesh.config import Config
from d8mesh.core.protocol.addresses import MAX_CANDIDATES
from d8mesh.core.protocol.membership import fingerprint
from d8mesh.core.protocol.pinning import Pin
from d8mesh.core.protocol.route import KnownBroker, Route
from d8mesh.edge.pins import PinFile
from d8mesh.nodes.reconnector.known_brokers import MAX_BROKERS, MAX_PORTS, KnownBrokers
from d8mesh.nodes.reconnector.trust import OrchestratorTrust

A, B = b"a" * 32, b"b" * 32


def known_in(folder: Path) -> KnownBrokers:
    return KnownBrokers(OrchestratorTrust(Config(mesh="m", data_dir=str(folder)), None))


def at(*addresses: str, port: int = 7010, key: bytes = A) -> KnownBroker:
    return KnownBroker("orch", addresses, port, None, key)


def test_another_key_brings_no_address_to_the_right_one(tmp_path: Path) -> None:
    known = known_in(tmp_path)
    known.add(at("10.0.0.1"))
    known.add(at("10.0.0.66", key=B))
    assert known.told["orch"] == (at("10.0.0.66", key=B), at("10.0.0.1"))


def test_where_a_session_stood_is_tried_however_much_else_is_said(tmp_path: Path) -> None:
    known = known_in(tmp_path)
    known.add(at("10.0.0.1"))
    known.proven("orch", Route("tcp://10.0.0.1:7010", "orch", A))
    for n in range(5 * MAX_CANDIDATES):
        known.add(at(f"10.0.1.{n}"))
    (told,) = known.told["orch"]
    assert len(told.addresses) == MAX_CANDIDATES
    assert told.addresses[-1] == "10.0.0.1"
    for port in range(1, 5 * MAX_PORTS):
        known.add(at("10.0.1.1", port=port))
    assert len(known.told["orch"]) == MAX_PORTS
    assert 7010 in [each.port for each in known.told["orch"]]


def test_who_is_passed_over_is_looked_at_again_and_few_are_remembered(tmp_path: Path) -> None:
    PinFile(tmp_path).add("m", Pin(fingerprint(A), A))
    known = known_in(tmp_path)
    assert known.is_open(at("10.0.0.1"))
    for n in range(2 * MAX_BROKERS):
        assert not known.is_open(at("10.0.0.2", key=n.to_bytes(32)))
    assert not known.is_open(at("10.0.0.66", key=B))
    assert len(known._passed_over) == MAX_BROKERS
    assert known.reconsidered() == []
    PinFile(tmp_path).add("m", Pin(fingerprint(B)))
    assert known.reconsidered() == [at("10.0.0.66", key=B)]
    assert known.reconsidered() == []


def test_a_trusted_key_under_many_names_takes_nobodys_place(tmp_path: Path) -> None:
    for key in (A, B):
        PinFile(tmp_path).add("m", Pin(fingerprint(key), key))
    known = known_in(tmp_path)
    known.add(KnownBroker("proven", ("10.0.0.3",), 7010, None, A))
    known.proven("proven", Route("tcp://10.0.0.3:7010", "proven", A))
    known.add(KnownBroker("other", ("10.0.0.2",), 7010, None, B))
    for n in range(2 * MAX_BROKERS):
        told = KnownBroker(f"false{n}", ("10.0.0.66",), 7010, None, A)
        assert known.is_open(told)
        known.add(told)
    known.add(at("10.0.0.1"))
    assert len(known.told) == MAX_BROKERS
    assert {"orch", "other", "proven"} <= set(known.told)
