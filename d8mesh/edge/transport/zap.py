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
_ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
#: A request: version, id, domain, address, routing id, mechanism, and what the mechanism shows.
_REQUEST_PARTS: Final = 6
_STATUS_TEXTS: Final = {
    Verdict.ADMITTED: b"OK",
    Verdict.WAITING: b"not admitted",
    Verdict.REFUSED: b"refused",
}


class ZapHandler:
    """Answers for every connection to the ROUTERs of a context, until that is terminated.

    Args:
        gate: may be another one later.
        mechanism: what alone is let in; others are refused whatever the gate says.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], gate: Gate, *, mechanism: bytes = CURVE
    ) -> None:
        self.gate, self._mechanism = gate, mechanism
        #: connections that were not admitted, so far; noted before ZeroMQ ends them
        self.refusals = 0
        self._asked = context.socket(zmq.REP)
        self._asked.linger = 0
        self._asked.bind(_ZAP_ENDPOINT)
        threading.Thread(target=self._serve, name="zap", daemon=True).start()

    def _serve(self) -> None:
        with self._asked, contextlib.suppress(zmq.ContextTerminated):
            while True:
                self._asked.send_multipart(self._answer(self._asked.recv_multipart()))

    def _answer(self, parts: list[bytes]) -> list[bytes]:
        """Return the answer to a request; the User-Id of whoever is admitted is its key in hex."""
        version, request, _, address, _, used = parts[:_REQUEST_PARTS]
        shown = parts[_REQUEST_PARTS:]
        key = shown[0] if shown and used == CURVE else b""
        verdict = Verdict.REFUSED
        if used == self._mechanism:
            # Whatever the gate raises: without this thread nobody could connect at all.
            with contextlib.suppress(Exception):
                verdict = self.gate(address.decode("ascii", "replace").removeprefix("::ffff:"), key)
        self.refusals += verdict is not Verdict.ADMITTED
        user = key.hex().encode() if verdict is Verdict.ADMITTED else b""
        return [version, request, verdict.value.encode(), _STATUS_TEXTS[verdict], user, b""]
