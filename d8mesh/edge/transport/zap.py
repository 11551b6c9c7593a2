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
#: Before it, in a ROUTER: whose request it is, and an empty frame.
_ENVELOPE_PARTS: Final = 2
#: Connections that are answered together at most: as many as one address may have unheard.
_MAX_TOGETHER: Final = 256
#: Between the key and the number in a User-Id.
_USER_SEPARATOR: Final = ":"
_STATUS_TEXTS: Final = {
    Verdict.ADMITTED: b"OK",
    Verdict.WAITING: b"not admitted",
    Verdict.REFUSED: b"refused",
}


class ZapHandler:
    """Answers for every connection to the ROUTERs of a context, until that is terminated.

    Each that is admitted has a number of its own, 1 for the first, which stands in its User-Id and
    so with each of its frames (`told_user`).

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
        #: the number of the connection that was admitted last
        self.newest = 0
        #: called before answers: those that wait for one go on after it
        self.before_answers: Callable[[], None] = lambda: None
        self._asked: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self._asked.linger = 0
        self._asked.bind(_ZAP_ENDPOINT)
        threading.Thread(target=self._serve, name="zap", daemon=True).start()

    def _serve(self) -> None:
        with self._asked, contextlib.suppress(zmq.ContextTerminated):
            while True:
                requests = [self._asked.recv_multipart()]
                with contextlib.suppress(zmq.Again):
                    while len(requests) < _MAX_TOGETHER:
                        requests.append(self._asked.recv_multipart(zmq.NOBLOCK))
                self.before_answers()
                for parts in requests:
                    envelope = parts[:_ENVELOPE_PARTS]
                    answer = self._answer(parts[_ENVELOPE_PARTS:])
                    self._asked.send_multipart([*envelope, *answer])

    def _answer(self, parts: list[bytes]) -> list[bytes]:
        version, request, _, address, _, used = parts[:_REQUEST_PARTS]
        shown = parts[_REQUEST_PARTS:]
        key = shown[0] if shown and used == CURVE else b""
        verdict = Verdict.REFUSED
        if used == self._mechanism:
            # Whatever the gate raises: without this thread nobody could connect at all.
            with contextlib.suppress(Exception):
                verdict = self.gate(address.decode("ascii", "replace").removeprefix("::ffff:"), key)
        user = ""
        if verdict is Verdict.ADMITTED:
            self.newest += 1
            user = f"{key.hex()}{_USER_SEPARATOR}{self.newest}"
        else:
            self.refusals += 1
        told = (verdict.value.encode(), _STATUS_TEXTS[verdict], user.encode())
        return [version, request, *told, b""]


def told_user(user: str) -> tuple[bytes | None, int]:
    """Return the key (None: without encryption) and the number that a User-Id tells."""
    key, _, number = user.partition(_USER_SEPARATOR)
    return bytes.fromhex(key) or None, int(number or 0)
