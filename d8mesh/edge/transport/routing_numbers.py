"""What a ROUTER calls its connections, and whether a name can be one that it gave.

It numbers those that ask for no name: a zero byte, and four of a counter. A peer may ask for any
name in its handshake, and ZeroMQ grants it. One that the counter has yet to come to ends the
process when it does (``Assertion failed: ok``); one that was another's has what is still sent to
that. Nodes of ours ask for none. The counter begins with what the C library draws, and that is the
same in each process, as ZeroMQ gives it no seed.

Source: https://libzmq.readthedocs.io/en/latest/zmq_socket.html (ZMQ_ROUTER), RFC 23/ZMTP
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import secrets
import sys
from typing import Final

import zmq

#: A name that a ROUTER gave: a zero byte and the counter.
_NAME_BYTES: Final = 5
_NUMBERS_IN_ALL: Final = 2**32
_NUMBERING_ENDPOINT: Final = "inproc://d8.numbers"
#: Where `srand` is; None: in what the process has loaded already.
_C_LIBRARY: Final = "ucrtbase" if sys.platform == "win32" else None
_SEED_BITS: Final = 32


def begin_anywhere() -> None:
    """Have the counters of sockets that this thread makes from now on begin where nobody knows."""
    with contextlib.suppress(OSError, AttributeError):  # a system without it: they can be guessed
        ctypes.CDLL(_C_LIBRARY).srand(ctypes.c_uint(secrets.randbits(_SEED_BITS)))


def newest_number(context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> int:
    """Return the number of the newest connection of a ROUTER that nobody can reach yet."""
    with context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        router.bind(_NUMBERING_ENDPOINT)
        dealer.connect(_NUMBERING_ENDPOINT)
        dealer.send(b"")
        name = router.recv_multipart()[0]
        router.unbind(_NUMBERING_ENDPOINT)
    return _number(name)


def place_after(newest: int, name: bytes) -> float:
    """Return as which connection after the `newest` one the ROUTER calls one so.

    It is 1 for the next; `math.inf`: it gives no such name.
    """
    if len(name) != _NAME_BYTES or name[0]:
        return math.inf
    return (_number(name) - newest) % _NUMBERS_IN_ALL or math.inf


def _number(name: bytes) -> int:
    return int.from_bytes(name[1:], "big")
