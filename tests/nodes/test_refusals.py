"""Who is not let in says so once, in a sentence, tries again after seconds, and gets in then."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from d8mesh import words
from d8mesh.config import Config
from d8mesh.core.protocol.codec import encode
from d8mesh.core.protocol.membership import Verdict, fingerprint
from d8mesh.core.protocol.messages import Welcome
from d8mesh.core.protocol.pinning import Pin
from d8mesh.core.protocol.route import KnownBroker, Route
from d8mesh.edge.pins import PinFile
from d8mesh.edge.transport.keys import CLIENT_FOLDER, new_pair, public_key_in
from d8mesh.errors import (
    ForbiddenError,
    MeshKeyError,
    NotAcknowledgedError,
    NotAdmittedError,
    OrchestratorKeyError,
    RevokedError,
)
from d8mesh.nodes.client import Client
from d8mesh.nodes.client.aio.client import AsyncClient
from d8mesh.nodes.reconnector import reconnector, refusals
from d8mesh.nodes.reconnector.refusals import pause_after, refusal_of
from d8mesh.nodes.reconnector.trust import OrchestratorTrust
from d8mesh.nodes.worker import Worker
from tests.keyed import PEER, SERVER, router_at
from tests.nodes.gated import GatedBroker
from tests.nodes.health_page import HealthPage, health_page
from tests.nodes.mesh import PATIENCE_S, mesh_in, until

#: Long enough for a storm to show itself.
WATCH_S = 2.5


def config_in(folder: Path) -> Config:
    return Config(mesh="m", data_dir=str(folder), interfaces=("no-mdns",))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of tenths instead of seconds."""
    shorter = dict.fromkeys(refusals._PAUSES_S, (0.2, 0.4))
    monkeypatch.setattr(refusals, "_PAUSES_S", shorter)


def client_key(folder: Path) -> str:
    key = public_key_in(folder / CLIENT_FOLDER)
    assert key is not None
    return fingerprint(key)


# ------------------------------------------------------------------------- the sentences


def test_each_refusal_says_who_and_what_to_do() -> None:
    route, told = Route("tcp://10.0.0.1:7010", "orch", SERVER.public), fingerprint(PEER.public)
    waiting = refusal_of(Verdict.WAITING, route, PEER.public)
    assert (type(waiting), waiting.code) == (NotAdmittedError, "access.pending")
    assert str(waiting).endswith(f"join approve {told}")
    revoked = refusal_of(Verdict.REFUSED, route, PEER.public)
    assert (type(revoked), revoked.code) == (RevokedError, "access.revoked")
    assert f"revoked the key {told}" in str(revoked)
    strange = refusal_of(None, route, PEER.public)
    assert (type(strange), strange.code) == (OrchestratorKeyError, "access.orchestrator_key")
    assert fingerprint(SERVER.public) in str(strange)
    through = Route("http://10.0.0.1:7001", "orch", SERVER.public)
    silent = refusal_of(None, through, PEER.public)
    assert "answers through http://10.0.0.1:7001" in str(silent)
    closed = refusal_of(None, through, PEER.public, "send its key")
    assert (type(closed), closed.code) == (MeshKeyError, "access.key")
    assert str(closed).endswith(
        "refuses this machine's connection to the orchestrator: send its key"
    )
    public = refusal_of(Verdict.REFUSED, route._replace(endpoint="tcp://8.8.8.8:7010"), PEER.public)
    assert "D8_ALLOW_PUBLIC" in str(public)


def test_they_are_said_in_other_languages_too(tmp_path: Path) -> None:
    route = Route("tcp://10.0.0.1:7010", "orch", SERVER.public)
    texts = [str(refusal_of(each, route, PEER.public)) for each in (None, *Verdict)]
    for secret in (None, b"s" * 32):
        trust = OrchestratorTrust(config_in(tmp_path), secret)
        trust.welcomed(PEER.public, "known")
        trust.may_contact(KnownBroker("strange", ("10.0.0.1",), 7010, None, SERVER.public))
        trust.may_contact(KnownBroker("old", ("10.0.0.1",), 7010, None))
        texts += trust.strangers
    words.use("es")
    try:
        assert [each for each in texts if words.translated(each) == each] == []
    finally:
        words.use(words.ENGLISH)


@pytest.mark.parametrize("kind", [Worker, Client])
def test_who_answers_after_another_was_the_first_has_no_session(
    tmp_path: Path, kind: type[Worker] | type[Client]
) -> None:
    config, key = config_in(tmp_path), new_pair().public
    router = router_at()
    with health_page() as (url, _), closing(router):
        told = {"broker_port": router.port, "broker_id": "late", "server_key": SERVER.public.hex()}
        HealthPage.body = json.dumps(told).encode()
        node = kind(url, config=config)
        try:
            if isinstance(node, Worker):
                node.start()
            until(lambda: router.socket.poll(20))
            ((peer, _),) = router.receive(1)
            PinFile(tmp_path).add("m", Pin(fingerprint(key), key))
            router.send(peer.routing_id, encode(Welcome(1, 1, "late", 3.0, 10.0, [])))
            until(lambda: not router.is_reading(peer.routing_id))
            is_there = node.wait_joined if isinstance(node, Worker) else node.wait_connected
            assert not is_there(0.2)
        finally:
            node.stop() if isinstance(node, Worker) else node.close()
    assert [pin.key for pin in PinFile(tmp_path).of("m")] == [key]


@pytest.mark.parametrize(
    "kind", [NotAdmittedError, RevokedError, OrchestratorKeyError, MeshKeyError]
)
def test_pauses_are_seconds_and_bounded(kind: type[ForbiddenError]) -> None:
    pauses = [pause_after(kind(), count) for count in (1, 2, 5, 1000)]
    assert 0.3 < pauses[0] < pauses[2]
    assert pauses[-1] < 20


# -------------------------------------------------------------------------- the worker


@pytest.mark.parametrize("verdict", [Verdict.WAITING, Verdict.REFUSED])
def test_a_worker_that_is_not_let_in_says_so_and_gets_in_later(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture, verdict: Verdict
) -> None:
    with GatedBroker(verdict) as broker:
        worker = Worker(broker.endpoint, config=config_in(tmp_path), slots=1)
        worker.start()
        try:
            until(lambda: len(broker.knocks) >= 3)
            assert str(worker.status()["refused"]).count("join approve") == 1
            assert broker.heard == 0
            told = [each for each in caplog.messages if each.startswith("link.refused")]
            assert len(told) == 1
            broker.verdict = Verdict.ADMITTED
            assert worker.wait_joined(PATIENCE_S)
            assert worker.status()["refused"] == []
            assert PinFile(tmp_path).of("m") == (), "a key that is given need not be kept"
        finally:
            worker.stop(drain_s=0.5)


def test_a_worker_that_is_revoked_while_it_works_loses_its_session(
    tmp_path: Path, quick: None
) -> None:
    with GatedBroker(Verdict.ADMITTED) as broker:
        worker = Worker(broker.endpoint, config=config_in(tmp_path), slots=1)
        worker.start()
        try:
            assert worker.wait_joined(PATIENCE_S)
            broker.__exit__()
            again = GatedBroker(Verdict.REFUSED, port=broker.port)
            with again:
                until(lambda: worker.status()["lost"])
                until(lambda: "revoked" in str(worker.status()["refused"]))
                assert worker.status()["orchestrators"] == []
                again.verdict = Verdict.ADMITTED
                until(lambda: worker.status()["orchestrators"])
        finally:
            worker.stop(drain_s=0.5)


def test_nobody_storms_a_door_that_is_shut(tmp_path: Path) -> None:
    """With the pauses as they are: one try, then seconds; also where the key is another."""
    with (
        GatedBroker(Verdict.WAITING) as waiting,
        GatedBroker(Verdict.ADMITTED, keys=new_pair()) as strange,
    ):
        workers = [
            Worker(broker.endpoint, config=config_in(tmp_path / name), slots=1)
            for name, broker in (("a", waiting), ("b", strange))
        ]
        for worker in workers:
            worker.start()
        try:
            until(lambda: all(worker.status()["refused"] for worker in workers))
            begun, before = time.monotonic(), len(waiting.knocks)
            until(lambda: time.monotonic() - begun > WATCH_S)
            assert len(waiting.knocks) - before <= 3
            assert strange.heard == 0
            assert "does not have the key" in str(workers[1].status()["refused"])
        finally:
            for worker in workers:
                worker.stop(drain_s=0.5)


# -------------------------------------------------------------------------- the clients


def test_a_client_that_is_not_let_in_is_told_at_once_and_gets_in_later(
    tmp_path: Path, quick: None
) -> None:
    with GatedBroker(Verdict.WAITING) as broker:
        with Client(endpoint=broker.endpoint, config=config_in(tmp_path)) as client:
            begun = time.monotonic()
            with pytest.raises(NotAdmittedError, match=f"join approve {client_key(tmp_path)}"):
                client.wait_connected(PATIENCE_S)
            assert time.monotonic() - begun < PATIENCE_S / 2
            with pytest.raises(NotAdmittedError):
                client.call("echo", {}, timeout=PATIENCE_S)
            assert "join approve" in client.trouble
            broker.verdict = Verdict.ADMITTED
            until(lambda: client.node.runner.connected.is_set())
            assert client.wait_connected(PATIENCE_S)
            assert broker.knocks[0] == public_key_in(tmp_path / CLIENT_FOLDER)


def test_a_client_that_is_revoked_is_told_so(tmp_path: Path, quick: None) -> None:
    with GatedBroker(Verdict.REFUSED) as broker:
        client = Client(endpoint=broker.endpoint, config=config_in(tmp_path))
        with pytest.raises(RevokedError, match="revoked the key"):
            client.submit("echo", {}).result(PATIENCE_S)
        with pytest.raises(NotAcknowledgedError, match="revoked the key"):
            client.close(0.1)


def test_a_client_for_asyncio_is_told_the_same(tmp_path: Path, quick: None) -> None:
    async def ask(endpoint: str) -> None:
        async with AsyncClient(endpoint=endpoint, config=config_in(tmp_path)) as client:
            with pytest.raises(NotAdmittedError, match="join approve"):
                await client.wait_connected(PATIENCE_S)
            with pytest.raises(NotAdmittedError, match="join approve"):
                await client.call("echo", {}, timeout=PATIENCE_S)
            broker.verdict = Verdict.ADMITTED
            while not client.node.is_connected:
                await asyncio.sleep(0.02)
            assert await client.wait_connected(PATIENCE_S)

    with GatedBroker(Verdict.WAITING) as broker:
        asyncio.run(ask(broker.endpoint))


def test_a_client_waits_for_the_one_that_it_knows_even_while_that_lets_nobody_in(
    tmp_path: Path, quick: None
) -> None:
    """A key that was let in and is shut out for minutes: what it waits for is not lost."""
    with GatedBroker(Verdict.ADMITTED) as broker:
        with Client(endpoint=broker.endpoint, config=config_in(tmp_path)) as client:
            assert client.wait_connected(PATIENCE_S)
            broker.__exit__()
            again = GatedBroker(Verdict.WAITING, port=broker.port)
            with again:
                until(lambda: len(again.knocks) > 1)
                assert "join approve" in client.trouble
                assert not client.wait_connected(0.05)
                again.verdict = Verdict.ADMITTED
                assert client.wait_connected(PATIENCE_S)


def test_a_client_that_knows_another_key_says_what_to_do(tmp_path: Path, quick: None) -> None:
    PinFile(tmp_path).add("m", Pin(fingerprint(SERVER.public), SERVER.public))
    config = replace(config_in(tmp_path), web_port=1)
    with GatedBroker(Verdict.ADMITTED, keys=new_pair()) as broker:
        with Client(endpoint=f"tcp://127.0.0.1:{broker.port}", config=config) as client:
            until(lambda: "does not have the key" in client.trouble)
            assert broker.heard == 0


@pytest.mark.skipif(sys.platform == "win32", reason="multicast on loopback")
def test_a_client_that_hears_only_strangers_says_so_and_goes_on_when_one_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnector, "STRANGERS_ONLY_S", 0.2)
    with mesh_in(tmp_path) as mesh:
        pins = PinFile(tmp_path / "data")
        pins.add(mesh.mesh, Pin(fingerprint(PEER.public), PEER.public))
        port = mesh.broker(is_announced=True)
        with Client(config=mesh.config()) as client:
            with pytest.raises(OrchestratorKeyError, match="join trust"):
                client.wait_connected(PATIENCE_S)
            with pytest.raises(OrchestratorKeyError, match="nothing is said to it"):
                client.call("echo", {}, timeout=PATIENCE_S)
            assert "join trust" in client.trouble
            pins.add(mesh.mesh, Pin(fingerprint(mesh.key(port))))
            until(lambda: client.node.session.is_up)
            assert client.wait_connected(PATIENCE_S)
            assert mesh.key(port) in [pin.key for pin in pins.of(mesh.mesh)]
