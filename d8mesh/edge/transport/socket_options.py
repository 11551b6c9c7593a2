"""What the sockets of all nodes have in common: bounds, clocks, and how they send.

Source: https://libzmq.readthedocs.io/en/latest/zmq_setsockopt.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import zmq

from d8mesh.core.protocol.messages import MAX_FRAME_BYTES

#: A peer that has not finished the ZMTP handshake by then is dropped: silence is over in 3 s.
HANDSHAKE_MS: Final = 2500
#: Transport heartbeats: a dead TCP connection is noticed and closed by libzmq itself. Links send
#: them, and a ROUTER closes a connection over which they have ceased. It sends none: libzmq 4.3.5
#: aborts the process when one is due on a connection that broke while its queue was full.
HEARTBEAT_MS: Final = 5000
HEARTBEAT_TIMEOUT_MS: Final = 15_000
#: Messages that may wait for one peer; a message is a batch, so this is plenty.
SEND_QUEUE_MESSAGES: Final = 1000
RECEIVE_QUEUE_MESSAGES: Final = 1000
#: What CURVE adds to a frame, at most: its name, a nonce, a flag and a seal.
SEAL_BYTES: Final = 64
#: How long closing may wait for what is still to be sent: a goodbye, not a queue.
LINGER_MS: Final = 300
#: Frames below this are copied into a message; larger ones are lent to it until they are sent.
COPIED_BYTES: Final = 65_536
#: As plain numbers: arithmetic with pyzmq's enums costs more than what it asks for.
NOBLOCK: Final = int(zmq.NOBLOCK)
READABLE: Final = int(zmq.POLLIN)
AND_MORE: Final = int(zmq.NOBLOCK) | int(zmq.SNDMORE)


def plain_send(handle: zmq.Socket[bytes]) -> Callable[..., object]:
    """Return (frame, flags, whether it is copied) -> None: `send` without pyzmq's Python around it.

    That looks for options of draft sockets, at twice the cost of sending.
    """
    return super(zmq.Socket, handle).send


def configure(handle: zmq.Socket[bytes]) -> None:
    """Set what all sockets have in common."""
    for option, value in (
        (zmq.LINGER, LINGER_MS),
        (zmq.MAXMSGSIZE, MAX_FRAME_BYTES + SEAL_BYTES),
        (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
        (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
        (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS),
        (zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS),
        (zmq.SNDHWM, SEND_QUEUE_MESSAGES),
        (zmq.RCVHWM, RECEIVE_QUEUE_MESSAGES),
        (zmq.IPV6, 1),
        (zmq.IMMEDIATE, 0),
    ):
        handle.set(option, value)
