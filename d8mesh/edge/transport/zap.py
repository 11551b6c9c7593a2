"""ZAP: who connects is asked about, by address and public key, before a frame of it is read.

Without a handler CURVE encrypts for anybody. The handler runs on a thread of its own, from before
the ROUTER is bound until its context is terminated; what it admits is told by the `gate`.

Source: RFC 27/ZAP, https://rfc.zeromq.org/spec/27/; RFC 25/ZMTP-CURVE
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Final, TypeAlias

import zmq

from d8mesh.core.protocol.membership import Verdict

#: (address, public key) -> what the connection is told; called by the handler's thread alone.
Gate: TypeAlias = Callable[[str, bytes], Verdict]

ZAP_DOMAIN: Final = b"d8"
CURVE: Final = b"CURVE"
_ENDPOINT: Final = "inproc://zeromq.zap.01"
_TEXTS: Final = {
    Verdict.ADMITTED: b"OK",
    Verdict.WAITING: b"not admitted",
    Verdict.REFUSED: b"refused",
}


def guard(context: zmq.Context[zmq.Socket[bytes]], gate: Gate, *, mechanism: bytes = CURVE) -> None:
    """Have every connection to the ROUTERs of `context` asked about, until that is terminated.

    Args:
        mechanism: what alone is let in; others are refused whatever the gate says.
    """
    asked = context.socket(zmq.REP)
    asked.linger = 0
    asked.bind(_ENDPOINT)

    def serve() -> None:
        with asked, contextlib.suppress(zmq.ContextTerminated):
            while True:
                asked.send_multipart(_answer(asked.recv_multipart(), gate, mechanism))

    threading.Thread(target=serve, name="zap", daemon=True).start()


def _answer(parts: list[bytes], gate: Gate, mechanism: bytes) -> list[bytes]:
    """Return the answer to a request; the User-Id of whoever is admitted is its key in hex."""
    version, request, _, address, _, used, *shown = parts
    key = shown[0] if shown and used == CURVE else b""
    verdict = Verdict.REFUSED
    if used == mechanism:
        # Whatever the gate raises: without this thread nobody could connect at all.
        with contextlib.suppress(Exception):
            verdict = gate(address.decode("ascii", "replace").removeprefix("::ffff:"), key)
    user = key.hex().encode() if verdict is Verdict.ADMITTED else b""
    return [version, request, verdict.value.encode(), _TEXTS[verdict], user, b""]
