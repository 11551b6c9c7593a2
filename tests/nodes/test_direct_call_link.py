"""A direct call and its connection, with an orchestrator whose every word the test says itself."""

from __future__ import annotations

import logging
import math
import queue
import signal
import threading
from collections.abc import Iterator
from typing import Final

import pytest

from d8mesh.core.client.session import ClientSession
from d8mesh.core.client.submission import TaskOutcome
from d8mesh.core.protocol.codec import decode_to_broker, encode
from d8mesh.core.protocol.messages import (
    COMPLETED_STATE,
    Accepted,
    Beat,
    ClientHello,
    Goodbye,
    Group,
    Message,
    Outcomes,
    Submit,
    Watch,
    Welcome,
)
from d8mesh.edge.transport.connector import Connector
from d8mesh.edge.transport.sockets import SharedContext
from d8mesh.errors import WaitTimeoutError
from d8mesh.nodes.client import direct_call
from d8mesh.nodes.client.direct_call import DirectCall, DirectCallLostError
from tests.keyed import PEER, route_to, router_at
from tests.nodes.mesh import PATIENCE_S

NAME: Final = "0123456789abcdef"
TASK: Final = Group("echo", 5, [b"\x80"])
#: A heartbeat so short that a direct call doubts within two seconds, and a lease beyond the test.
WELCOME: Final = Welcome(1, 1, "orch-1", 0.1, 60.0, [])
RESULT: Final = b"\x81\xa7success\xc3"


class Orchestrator:
    """Says what it is told to, and nothing else."""

    def __init__(self) -> None:
        self._router = router_at()
        self.route = route_to(self._router.port)
        self._peer = b""
        self._is_there = True

    def hear(self, *kinds: type[Message]) -> None:
        """Wait for messages of these kinds, one after the other, and pass over others."""
        for kind in kinds:
            while True:
                assert self._router.socket.poll(int(PATIENCE_S * 1000))
                (((self._peer, *_), frame),) = self._router.receive(1)
                if isinstance(decode_to_broker(frame or b""), kind):
                    break

    def say(self, *messages: Message) -> None:
        for message in messages:
            assert self._router.send(self._peer, encode(message))

    def close(self) -> None:
        if self._is_there:
            self._router.close()
        self._is_there = False

    def come_again(self) -> None:
        """Be gone for a moment, and know nothing then."""
        port = self._router.port
        self._router.close()
        self._router = router_at(port)


@pytest.fixture
def orchestrator() -> Iterator[Orchestrator]:
    orchestrator = Orchestrator()
    try:
        yield orchestrator
    finally:
        orchestrator.close()


@pytest.fixture
def line(orchestrator: Orchestrator) -> Iterator[DirectCall]:
    shared = SharedContext()
    session = ClientSession(NAME, "m", "host")
    line = DirectCall(orchestrator.route, session, Connector(shared=shared, keys=PEER))
    try:
        yield line
    finally:
        line.close()
        shared.term()


def called(line: DirectCall, timeout_s: float | None = PATIENCE_S) -> queue.Queue[object]:
    """Call on a thread of its own; what comes of it is put into the queue."""
    ended: queue.Queue[object] = queue.Queue()

    def call() -> None:
        try:
            ended.put(line.call(line.submission(TASK), timeout_s, lambda: None))
        except Exception as error:
            ended.put(error)

    threading.Thread(target=call).start()
    return ended


DONE = TaskOutcome(COMPLETED_STATE, RESULT)


def outcomes(*numbers: int) -> Outcomes:
    ids = [f"{NAME}-{n}" for n in numbers]
    return Outcomes(ids, bytes([COMPLETED_STATE] * len(ids)), [RESULT] * len(ids))


def test_an_outcome_is_found_among_others(line: DirectCall, orchestrator: Orchestrator) -> None:
    first = called(line, 0.5)
    orchestrator.hear(ClientHello)
    orchestrator.say(WELCOME)
    orchestrator.hear(Submit)
    assert isinstance(first.get(timeout=PATIENCE_S), WaitTimeoutError)
    second = called(line)
    orchestrator.hear(ClientHello)
    orchestrator.say(WELCOME)
    orchestrator.hear(Submit)
    orchestrator.say(Accepted(1, NAME, 0), Accepted(2, NAME, 1), outcomes(0), outcomes(0, 1))
    assert second.get(timeout=PATIENCE_S) == DONE
    line.session.check()
    assert not line.session.is_bound


def test_after_a_pause_nothing_old_counts(
    line: DirectCall, orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_call, "GREET_AGAIN_S", 0.0)
    for n in range(3):
        ended = called(line)
        orchestrator.hear(ClientHello)
        orchestrator.say(WELCOME)
        orchestrator.hear(Submit)
        orchestrator.say(Accepted(n + 1, NAME, n), outcomes(n), Goodbye("stopped"))
        assert ended.get(timeout=PATIENCE_S) == DONE
        assert line._link.socket.poll(int(PATIENCE_S * 1000))


def test_who_is_silent_but_there_is_not_given_up(
    line: DirectCall, orchestrator: Orchestrator
) -> None:
    ended = called(line, 3.0)  # doubted after 1.6 s
    orchestrator.hear(ClientHello)
    orchestrator.say(WELCOME)
    orchestrator.hear(Submit, Watch, Watch)
    assert isinstance(ended.get(timeout=PATIENCE_S), WaitTimeoutError)


@pytest.mark.parametrize(
    ("doubts", "why"), [(False, "has been cut for"), (True, "does not answer")]
)
def test_who_is_there_no_more_is_given_up(
    line: DirectCall,
    orchestrator: Orchestrator,
    monkeypatch: pytest.MonkeyPatch,
    doubts: bool,
    why: str,
) -> None:
    if doubts:
        monkeypatch.setattr(direct_call, "CUT_S", math.inf)
    line._next_doubt = 0.0 if doubts else math.inf
    ended = called(line)
    orchestrator.hear(ClientHello)
    orchestrator.say(WELCOME)
    orchestrator.hear(Submit)
    orchestrator.close()
    error = ended.get(timeout=PATIENCE_S)
    assert isinstance(error, DirectCallLostError)
    assert why in str(error)


def test_who_says_goodbye_is_left(line: DirectCall, orchestrator: Orchestrator) -> None:
    ended = called(line)
    orchestrator.hear(ClientHello)
    orchestrator.say(WELCOME)
    orchestrator.hear(Submit)
    orchestrator.say(Goodbye("draining"))
    assert isinstance(ended.get(timeout=PATIENCE_S), DirectCallLostError)


def test_a_connection_that_is_made_again_is_gone_on_with(
    line: DirectCall, orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_call, "CUT_S", PATIENCE_S)
    monkeypatch.setattr(direct_call, "first_reachable", lambda *_, **__: ("127.0.0.1", 0))
    ended = called(line)
    orchestrator.hear(ClientHello)
    orchestrator.say(WELCOME)
    orchestrator.hear(Submit)
    orchestrator.come_again()
    orchestrator.hear(ClientHello)
    orchestrator.say(WELCOME)
    orchestrator.hear(Submit)
    orchestrator.say(Accepted(1, NAME, 0), outcomes(0))
    assert ended.get(timeout=PATIENCE_S) == DONE


def test_a_long_wait_is_told(
    line: DirectCall,
    orchestrator: Orchestrator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(direct_call, "QUIET_S", 0.0)
    with caplog.at_level(logging.WARNING, "d8mesh.client"):
        ended = called(line, None)
        orchestrator.hear(ClientHello)
        orchestrator.say(WELCOME)
        orchestrator.hear(Submit, Watch, Watch)
        orchestrator.say(Beat(1), outcomes(0))
        assert ended.get(timeout=PATIENCE_S) == DONE
    assert f"the result of {NAME}-0" in caplog.text


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers")
def test_signals_do_not_make_a_wait_longer(line: DirectCall) -> None:
    """A wait that begins anew after each signal would only be over with the signals."""
    count = 0
    most = 400

    def heard(*_: object) -> None:
        nonlocal count
        count += 1
        if count >= most:
            signal.setitimer(signal.ITIMER_REAL, 0)

    before = signal.signal(signal.SIGALRM, heard)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        with pytest.raises(WaitTimeoutError, match=rf"{NAME}-0 has not come within 0\.6 s"):
            line.call(line.submission(TASK), 0.6, lambda: None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert 0 < count < most
