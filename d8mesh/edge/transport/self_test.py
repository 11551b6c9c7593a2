"""The test of the gate at every start: whoever must be refused is, and whoever may come can.

A ROUTER of the same make as the real one, which is not bound yet, is knocked at over loopback: with
another orchestrator's key, with a key that the gate refuses, without encryption, and rightly. A
fault in a library, a build without encryption or a forgotten option would leave a door open that
looks closed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Final

import zmq

from d8mesh.core.protocol.membership import Verdict
from d8mesh.edge.transport.keys import KeyPair, new_pair
from d8mesh.edge.transport.zap import ZapHandler
from d8mesh.errors import D8Error

#: Four handshakes take 20 ms; a Raspberry Pi that has just been switched on takes its time.
SELF_TEST_S: Final = 15.0
_RIGHT: Final = b"a key that may come"
_UNWANTED: Final = b"a key that is refused"
_MISTAKEN: Final = b"the key of another orchestrator"
_UNSEALED: Final = b"no encryption"


def prove_gate(
    make_router: Callable[[], zmq.Socket[bytes]], handler: ZapHandler, server_key: bytes
) -> None:
    """See that the gate holds; its handler has the test's gate meanwhile.

    Args:
        make_router: returns a ROUTER as the real one is, not bound.

    Raises:
        D8Error: somebody came in who must not, or nobody can.
    """
    right, wrong, before = new_pair(), new_pair(), handler.gate
    handler.gate = lambda address, key: Verdict.ADMITTED if key == right.public else Verdict.REFUSED
    with contextlib.ExitStack() as undo:
        undo.callback(setattr, handler, "gate", before)
        clients: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        undo.callback(clients.destroy, 0)
        router = undo.enter_context(make_router())
        router.bind("tcp://127.0.0.1:0")
        where = router.getsockopt_string(zmq.LAST_ENDPOINT)
        knocks = (
            (_UNWANTED, server_key, wrong),
            (_MISTAKEN, wrong.public, right),
            (_UNSEALED, b"", None),
            (_RIGHT, server_key, right),
        )
        monitors: dict[zmq.Socket[bytes], bytes] = {}
        for said, theirs, keys in knocks:
            dealer = undo.enter_context(clients.socket(zmq.DEALER))
            monitors[_knock(dealer, where, said, theirs, keys)] = said
        heard, ended = _outcome(router, monitors)
    if _RIGHT not in heard:
        raise D8Error(
            f"the test of the gate failed: {_RIGHT.decode()} was not let in within "
            f"{SELF_TEST_S:.0f} s. Nobody could join, so nothing is announced"
        )
    for said in (_UNWANTED, _MISTAKEN, _UNSEALED):
        if said in heard or said not in ended:
            raise D8Error(
                f"the test of the gate failed: {said.decode()} was not refused. Anybody could "
                "join, so nothing is announced: is pyzmq installed as its wheel?"
            )


def _knock(
    dealer: zmq.Socket[bytes], where: str, said: bytes, server_key: bytes, keys: KeyPair | None
) -> zmq.Socket[bytes]:
    """Connect and say something; return what tells that the connection has ended."""
    dealer.linger = 0
    dealer.reconnect_ivl = -1
    if keys is not None:
        dealer.curve_publickey, dealer.curve_secretkey = keys.public, keys.secret
        dealer.curve_serverkey = server_key
    monitor: zmq.Socket[bytes] = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    dealer.connect(where)
    with contextlib.suppress(zmq.Again):  # it has been refused already: to wait would be for ever
        dealer.send(said, zmq.NOBLOCK)
    return monitor


def _outcome(
    router: zmq.Socket[bytes], monitors: dict[zmq.Socket[bytes], bytes]
) -> tuple[set[bytes], set[bytes]]:
    """Return what was heard, and of which the connection has ended, once all is decided."""
    heard: set[bytes] = set()
    ended: set[bytes] = set()
    poller = zmq.Poller()
    for each in (router, *monitors):
        poller.register(each, zmq.POLLIN)
    until = time.monotonic() + SELF_TEST_S
    while len(heard | ended) < len(monitors) and (left_s := until - time.monotonic()) > 0:
        for ready, _ in poller.poll(int(left_s * 1000) + 1):
            if ready is router:
                heard.add(router.recv_multipart()[-1])
            else:
                ready.recv_multipart()
                ended.add(monitors[ready])
    return heard, ended
