"""The handler of ZAP: what it asks, what it answers, and that nothing ends it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for

import pytest
import zmq

from d8mesh.core.protocol.membership import Verdict
from d8mesh.edge.transport.keys import new_pair
from d8mesh.edge.transport.zap import CURVE, Gate, ZapHandler, told_user

KEY = new_pair().public


class Asker:
    """Asks a handler as libzmq does."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._socket = context.socket(zmq.REQ)
        self._socket.linger = 0
        self._socket.connect("inproc://zeromq.zap.01")

    def ask(
        self, *, address: bytes = b"192.168.1.5", mechanism: bytes = CURVE, key: bytes = KEY
    ) -> list[bytes]:
        shown = [] if mechanism == b"NULL" else [key]
        self._socket.send_multipart([b"1.0", b"7", b"d8", address, b"", mechanism, *shown])
        assert self._socket.poll(20_000)
        told = self._socket.recv_multipart()
        assert told[:2] == [b"1.0", b"7"]
        assert len(told) == 6
        return told[2:]

    def close(self) -> None:
        self._socket.close(0)


@contextlib.contextmanager
def asker(gate: Gate, mechanism: bytes = CURVE) -> Iterator[Asker]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    ZapHandler(context, gate, mechanism=mechanism)
    made = Asker(context)
    try:
        yield made
    finally:
        made.close()
        context.term()


@pytest.mark.parametrize(
    ("verdict", "status", "user"),
    [
        (Verdict.ADMITTED, b"200", KEY.hex().encode() + b":1"),
        (Verdict.WAITING, b"400", b""),
        (Verdict.REFUSED, b"500", b""),
    ],
    ids=["admitted", "waiting", "refused"],  # keys differ from one process to the next
)
def test_the_gate_decides_and_who_comes_in_is_known_by_its_key(
    verdict: Verdict, status: bytes, user: bytes
) -> None:
    asked: list[tuple[str, bytes]] = []

    def gate(address: str, key: bytes) -> Verdict:
        asked.append((address, key))
        return verdict

    with asker(gate) as it:
        told = it.ask()
    assert (told[0], told[2]) == (status, user)
    assert asked == [("192.168.1.5", KEY)]


def test_an_address_of_ipv4_in_ipv6_is_told_as_that_of_ipv4() -> None:
    asked: list[str] = []

    def gate(address: str, key: bytes) -> Verdict:
        asked.append(address)
        return Verdict.ADMITTED

    with asker(gate) as it:
        it.ask(address=b"::ffff:10.0.0.3")
        it.ask(address=b"fe80::1")
        it.ask(address=b"\xff\xfe odd")
    assert asked[:2] == ["10.0.0.3", "fe80::1"]
    assert len(asked) == 3


@pytest.mark.parametrize("mechanism", [b"NULL", b"PLAIN", b"GSSAPI"])
def test_without_encryption_nobody_comes_in_whatever_the_gate_says(mechanism: bytes) -> None:
    with asker(lambda address, key: Verdict.ADMITTED) as it:
        assert it.ask(mechanism=mechanism)[0] == b"500"
        assert it.ask()[0] == b"200"


def test_for_measurements_without_encryption_nobody_is_known_by_a_key() -> None:
    with asker(lambda address, key: Verdict.ADMITTED, b"NULL") as it:
        assert it.ask(mechanism=b"NULL")[::2] == [b"200", b":1"]
        assert it.ask()[0] == b"500"
    assert told_user(":1") == (None, 1)


def test_each_that_comes_in_has_a_number_of_its_own() -> None:
    verdicts = iter((Verdict.ADMITTED, Verdict.REFUSED, Verdict.ADMITTED))
    with asker(lambda address, key: next(verdicts)) as it:
        users = [it.ask()[2].decode() for _ in range(3)]
    assert users[1] == ""
    assert [told_user(users[0]), told_user(users[2])] == [(KEY, 1), (KEY, 2)]


def test_all_who_ask_are_answered_after_what_is_to_be_done_before() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    handler = ZapHandler(context, lambda address, key: Verdict.ADMITTED)
    is_due, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        is_due.set()
        assert go_on.wait(20)

    handler.before_answers = wait
    askers = [Asker(context) for _ in range(20)]
    with ThreadPoolExecutor(len(askers)) as pool:
        asked = [pool.submit(each.ask) for each in askers]
        assert is_due.wait(20)
        assert not wait_for(asked, 0.2).done
        go_on.set()
        users = {each.result(20)[2] for each in asked}
    assert len(users) == len(askers)
    for each in askers:
        each.close()
    context.term()


def test_a_gate_that_raises_refuses_and_is_asked_again() -> None:
    asked: list[bytes] = []

    def gate(address: str, key: bytes) -> Verdict:
        asked.append(key)
        if len(asked) == 1:
            raise ValueError(address)
        return Verdict.ADMITTED

    with asker(gate) as it:
        assert [it.ask()[0], it.ask()[0]] == [b"500", b"200"]
