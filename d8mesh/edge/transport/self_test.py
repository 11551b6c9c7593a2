"""The proof, at each start, that this installation keeps strangers out.

An encryption that is there and lets everybody in looks like one that works. So an orchestrator
opens a ROUTER of its own on loopback first, with its own keys and the real handler, and sees that
whoever speaks in clear, knows another key of the orchestrator, or is not admitted is not heard, and
that who is admitted is.

Source: RFC 23/ZMTP (greeting), RFC 26/CurveZMQ
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Final

from d8mesh.core.protocol.addresses import LOOPBACK, endpoint
from d8mesh.core.protocol.membership import Verdict
from d8mesh.edge.transport.keys import KeyPair, new_pair
from d8mesh.edge.transport.sockets import DealerLink, RouterEndpoint, SharedContext
from d8mesh.errors import D8Error

#: A handshake takes milliseconds; a machine that is busy with something else may need seconds.
PROOF_S: Final = 15.0
_LOOK_S: Final = 0.001
_FRAME: Final = b"hello"
_NO_KEY: Final = b""
#: ZMTP 3.1 as a client without encryption says it: greeting, and the READY of a DEALER.
_IN_CLEAR: Final = (
    b"\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL".ljust(64, b"\0")
    + b"\4\x1c\5READY\x0bSocket-Type\0\0\0\6DEALER"
)


def prove(keys: KeyPair) -> None:
    """See that a ROUTER with these keys hears whom it shall hear, and nobody else.

    Raises:
        D8Error: it does not.
    """
    admitted, stranger = new_pair(), new_pair()
    asked: set[bytes] = set()

    def gate(address: str, key: bytes) -> Verdict:
        asked.add(key)
        is_admitted = key in (admitted.public, _NO_KEY)  # what has no key is not to come so far
        return Verdict.ADMITTED if is_admitted else Verdict.REFUSED

    with contextlib.ExitStack() as stack:
        shared = SharedContext()
        stack.callback(shared.term)
        router = RouterEndpoint(LOOPBACK, [0], keys=keys, gate=gate)
        stack.callback(router.close)

        def link_of(own: KeyPair, server_key: bytes) -> DealerLink:
            place = endpoint(LOOPBACK, router.port)
            link = DealerLink(place, shared, server_key=server_key, keys=own)
            stack.callback(link.close)
            return link

        unknown, misled = link_of(stranger, keys.public), link_of(admitted, stranger.public)
        _claim(_is_deaf(router.port), "who speaks without encryption is not cut off")
        _await(lambda: _is_cut(misled), "who expects another key is not cut off")
        _await(lambda: _is_cut(unknown), "who is not admitted is not cut off")
        _claim(stranger.public in asked, "who is let in is not asked about")
        right = link_of(admitted, keys.public)
        right.send(_FRAME)
        _await(lambda: router.socket.poll(0), "who is admitted is not heard")
        heard = [(peer.key, frame) for peer, frame in router.receive(9)]
        _claim(heard == [(admitted.public, _FRAME)], "somebody else is heard")


def _is_cut(link: DealerLink) -> bool:
    link.look()
    return link.is_cut


def _is_deaf(port: int) -> bool:
    """Speak in clear; return whether the other side hangs up."""
    with socket.create_connection((LOOPBACK, port), timeout=PROOF_S) as plain:
        try:
            plain.sendall(_IN_CLEAR)
            while plain.recv(256):  # its greeting
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
    return True


def _await(what: Callable[[], object], otherwise: str) -> None:
    deadline = time.monotonic() + PROOF_S
    while not what():
        _claim(time.monotonic() < deadline, otherwise)
        time.sleep(_LOOK_S)


def _claim(holds: bool, otherwise: str) -> None:
    if not holds:
        raise D8Error(
            f"this installation does not keep strangers out ({otherwise}): nothing was opened or "
            "announced. Install pyzmq anew, from its own wheel"
        )
