"""Two ways to one orchestrator: the worker keeps one link and lets the other go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from d8mesh.config import Config
from d8mesh.core.protocol.codec import encode
from d8mesh.core.protocol.messages import Beat, Welcome, Work, WorkGroup
from d8mesh.core.worker.broker_session import Profile
from d8mesh.core.worker.session import WorkerSession
from d8mesh.edge.identity import Identity
from d8mesh.edge.transport.router import RouterEndpoint
from d8mesh.edge.transport.sockets import DealerLink, Waker
from d8mesh.nodes.worker.orchestrators import Orchestrators
from d8mesh.nodes.worker.runner import WorkerRunner
from d8mesh.nodes.worker.slots import Bell, Slots
from tests.keyed import PEER, link_to, route_to, router_at
from tests.nodes.mesh import PATIENCE_S

PATIENCE_MS = int(PATIENCE_S * 1000)
WELCOME = Welcome(1, 1, "broker", 3.0, 10.0, [])
WORK = Work(1, [WorkGroup("echo", 5.0, False, ["0123456789abcdef-0"], [bytes(16)], [b"\x80"])])


@pytest.fixture
def router() -> Iterator[RouterEndpoint]:
    router = router_at()
    try:
        yield router
    finally:
        router.close()


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[WorkerRunner]:
    """A worker whose turns the test takes itself, and whose slots never run anything."""
    waker = Waker()
    identity = Identity(tmp_path, "w")
    profile = Profile(
        mesh="m",
        worker_id=identity.worker_id,
        boot_id="boot",
        worker_type="echo",
        machine_id="machine",
        host="host",
        status_port=0,
        slots=1,
    )
    runner = WorkerRunner(
        WorkerSession(profile, []),
        slots=Slots(1, {}, identity.worker_id, Bell(waker)),
        orchestrators=Orchestrators(Config(data_dir=str(tmp_path)), keys=PEER, wake=waker.wake),
        identity=identity,
        waker=waker,
        addresses=frozenset,
    )
    with ExitStack() as stack:
        stack.callback(identity.close)
        stack.callback(runner._close)
        yield runner


def greeting_of(router: RouterEndpoint) -> bytes:
    """Return who says HELLO next."""
    assert router.socket.poll(PATIENCE_MS)
    (((peer, *_), _),) = router.receive(1)
    return peer


def test_a_link_that_another_retires_is_not_read_in_the_same_turn(
    router: RouterEndpoint, runner: WorkerRunner
) -> None:
    session = runner.session
    links: dict[str, DealerLink] = {}
    peers: dict[str, bytes] = {}
    route = route_to(router.port)
    for key in ("first", "second"):
        links[key] = link_to(router.port)
        runner._connect(key, links[key], route, time.monotonic())
        peers[key] = greeting_of(router)

    def say(key: str, message: Welcome | Work | Beat) -> None:
        router.send(peers[key], encode(message))
        assert links[key].socket.poll(PATIENCE_MS)

    say("first", WELCOME)
    runner._turn()
    say("first", WORK)
    runner._turn()
    assert session.brokers["first"].open
    session.link_down("first", time.monotonic())  # cut: meanwhile the second is welcomed
    say("second", WELCOME)
    runner._turn()
    assert session.brokers["second"].is_welcome
    session.link_up("first", time.monotonic())
    say("first", WELCOME)  # it has work, so the second goes, from which there is a message too
    say("second", Beat(1))
    runner._turn()
    assert list(runner._links) == ["first"]
    with pytest.raises(zmq.ZMQError):
        links["second"].socket.poll(0)
