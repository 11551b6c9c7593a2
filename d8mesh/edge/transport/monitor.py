"""What ZeroMQ tells of the TCP connections of a ROUTER, with the sockets of those that came.

Source: https://libzmq.readthedocs.io/en/latest/zmq_socket_monitor.html
"""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Final, NamedTuple

import zmq

from d8mesh.edge.transport.descriptors import duplicate

#: Never HANDSHAKE_FAILED_PROTOCOL: libzmq 4.3.5 tells of a frame that cannot be opened by that too,
#: loses its `errno` thereby, takes the connection for one whose queue is full, and aborts the
#: process at the next heartbeat (``Assertion failed: !_io_error``).
TOLD_EVENTS: Final = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_MONITOR_ENDPOINT: Final = "inproc://d8.connections"
#: Read at once, some milliseconds: whoever connects again and again hinders nobody.
MAX_EVENTS: Final = 512


class MonitorEvent(NamedTuple):
    """What the monitor has told.

    descriptor: ZeroMQ's, of who was accepted or has ended; of handshakes it is not told.
    handle: a duplicate of it, of who was accepted and is still there.
    address: whose that is.
    """

    kind: int
    descriptor: int
    handle: socket.socket | None = None
    address: str = ""


class Monitor:
    """Reads what is told of a ROUTER that is not bound yet.

    Thread: made and closed by that of the ROUTER, read by one.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> None:
        self._router = router
        router.monitor(_MONITOR_ENDPOINT, TOLD_EVENTS)
        self.socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self.socket.linger = 0
        self.socket.rcvhwm = 0  # ZeroMQ's own thread shall never wait for this one
        self.socket.connect(_MONITOR_ENDPOINT)
        self._ahead: list[MonitorEvent] = []

    @property
    def is_ahead(self) -> bool:
        """Return whether there is something to be read that the socket does not tell any more."""
        return bool(self._ahead)

    def read(self) -> tuple[list[MonitorEvent], bool]:
        """Return what was told since, the oldest first, and whether that is all until this call.

        An end is told before the descriptor can be another's. So a duplicate is of the connection
        that was meant if no end of that one is told after the duplicate was made. Whoever gets
        through the gate was there then. In a flood that has more than `MAX_EVENTS` waiting after
        it, one that ended before that may have the socket of its successor until its end is read.
        """
        told = self._ahead + self._read()
        is_all, self._ahead = len(told) - len(self._ahead) < MAX_EVENTS, []
        if not told:
            return told, is_all
        there: dict[int, int] = {}
        for at, each in enumerate(told):
            if each.kind == zmq.EVENT_ACCEPTED:
                there[each.descriptor] = at
            elif each.kind == zmq.EVENT_DISCONNECTED:
                there.pop(each.descriptor, None)
        made = {descriptor: duplicate(descriptor) for descriptor in there}
        self._ahead = self._read()
        for each in self._ahead:
            if each.kind == zmq.EVENT_DISCONNECTED:
                handle, _ = made.pop(each.descriptor, (None, ""))
                if handle is not None:
                    handle.close()
        for descriptor, (handle, address) in made.items():
            at = there[descriptor]
            told[at] = told[at]._replace(handle=handle, address=address)
        return told, is_all

    def close(self) -> None:
        """Have nothing told any more."""
        self._router.disable_monitor()
        self.socket.close(0)

    def _read(self) -> list[MonitorEvent]:
        told: list[MonitorEvent] = []
        with contextlib.suppress(zmq.Again):
            while len(told) < MAX_EVENTS:
                event, _ = self.socket.recv_multipart(zmq.NOBLOCK)
                kind = int.from_bytes(event[:2], sys.byteorder)
                told.append(MonitorEvent(kind, int.from_bytes(event[2:6], sys.byteorder)))
        return told
