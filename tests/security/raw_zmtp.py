"""ZMTP 3.1 with CURVE, spoken by hand: for what no ZeroMQ library would ever send.

The boxes are libsodium's, of the copy that pyzmq's wheel carries; where there is none, the tests
that need one are skipped.

Source: RFC 23/ZMTP, RFC 26/CurveZMQ
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import socket
import struct
from pathlib import Path
from typing import Final

import pytest
import zmq

from d8mesh.edge.transport.keys import KeyPair, new_pair

MORE, COMMAND = 1, 2
_PATIENCE_S: Final = 20.0


def greeting(mechanism: str, *, version: bytes = b"\x03\x01") -> bytes:
    """Return the 64 bytes that open a connection."""
    signature = b"\xff" + bytes(8) + b"\x7f"
    return signature + version + mechanism.encode().ljust(20, b"\0") + bytes(32)


def frame(flags: int, body: bytes) -> bytes:
    """Return a frame of ZMTP: bit 0 more, bit 2 command."""
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | 2]) + struct.pack(">Q", len(body)) + body


def _sodium() -> ctypes.CDLL | None:
    beside = sorted(Path(zmq.__file__).parent.parent.glob("pyzmq.libs/*sodium*"))
    found = str(beside[0]) if beside else ctypes.util.find_library("sodium")
    return ctypes.CDLL(found) if found else None


_SODIUM: Final = _sodium()
needs_sodium: Final = pytest.mark.skipif(_SODIUM is None, reason="there is no libsodium")


class Box:
    """What two keys seal for each other."""

    def __init__(self, public: bytes, secret: bytes) -> None:
        self._key = ctypes.create_string_buffer(32)
        assert _SODIUM is not None
        assert _SODIUM.crypto_box_beforenm(self._key, public, secret) == 0

    def seal(self, content: bytes, nonce: bytes) -> bytes:
        sealed = ctypes.create_string_buffer(len(content) + 16)
        size = ctypes.c_ulonglong(len(content))
        assert _SODIUM is not None
        assert _SODIUM.crypto_box_easy_afternm(sealed, content, size, nonce, self._key) == 0
        return sealed.raw

    def open(self, sealed: bytes, nonce: bytes) -> bytes:
        content = ctypes.create_string_buffer(len(sealed) - 16)
        size = ctypes.c_ulonglong(len(sealed))
        assert _SODIUM is not None
        assert _SODIUM.crypto_box_open_easy_afternm(content, sealed, size, nonce, self._key) == 0
        return content.raw


class RawZmtp:
    """A connection to a ROUTER at 127.0.0.1 whose every byte is ours.

    One that is cut off before the system has said that it is there is one that has ended.
    """

    def __init__(self, port: int) -> None:
        try:
            self.socket = socket.create_connection(("127.0.0.1", port), _PATIENCE_S)
        except (BrokenPipeError, ConnectionResetError):
            self.socket, other = socket.socketpair()
            self.socket.settimeout(_PATIENCE_S)
            other.close()
        self._session: Box | None = None
        self._count = 0

    def __enter__(self) -> RawZmtp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def shake_hands(
        self, server_key: bytes, keys: KeyPair | None = None, *, name: bytes = b""
    ) -> RawZmtp:
        """Greet, and do the whole handshake of CURVE as a DEALER; closed if that fails.

        Args:
            name: what the ROUTER is asked to call this connection; none if it is empty.
        """
        try:
            self._shake_hands(server_key, keys or new_pair(), name)
        except BaseException:
            self.close()
            raise
        return self

    def _shake_hands(self, server_key: bytes, keys: KeyPair, name: bytes) -> None:
        fleeting = new_pair()
        self.socket.sendall(greeting("CURVE"))
        self._take(64)
        number = self._number()
        box = Box(server_key, fleeting.secret).seal(bytes(64), b"CurveZMQHELLO---" + number)
        self.command(b"\x05HELLO\x01\x00" + bytes(72) + fleeting.public + number + box)
        told = self.read_frame()
        assert told[:8] == b"\x07WELCOME", told[:40]
        opened = Box(server_key, fleeting.secret).open(told[24:], b"WELCOME-" + told[8:24])
        theirs, cookie = opened[:32], opened[32:]
        vouching = os.urandom(16)
        vouch = Box(theirs, keys.secret).seal(fleeting.public + server_key, b"VOUCH---" + vouching)
        ready = b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
        if name:
            ready += b"\x08Identity" + struct.pack(">I", len(name)) + name
        number = self._number()
        self._session = Box(theirs, fleeting.secret)
        box = self._session.seal(
            keys.public + vouching + vouch + ready, b"CurveZMQINITIATE" + number
        )
        self.command(b"\x08INITIATE" + cookie + number + box)
        told = self.read_frame()
        assert told[:6] == b"\x05READY", told[:40]

    def sealed(self, content: bytes, flags: int = 0) -> bytes:
        """Return the bytes of one encrypted frame."""
        assert self._session is not None
        number = self._number()
        box = self._session.seal(bytes([flags]) + content, b"CurveZMQMESSAGEC" + number)
        return frame(0, b"\x07MESSAGE" + number + box)

    def send(self, content: bytes, flags: int = 0) -> None:
        """Send one encrypted frame."""
        self.socket.sendall(self.sealed(content, flags))

    def command(self, body: bytes) -> None:
        self.socket.sendall(frame(4, body))

    def receive(self) -> bytes:
        """Return the content of the next message, passing over heartbeats."""
        assert self._session is not None
        while True:
            told = self.read_frame()
            assert told[:8] == b"\x07MESSAGE", told[:40]
            opened = self._session.open(told[16:], b"CurveZMQMESSAGES" + told[8:16])
            if not opened[0] & COMMAND:
                return opened[1:]

    def read_frame(self) -> bytes:
        """Return the body of the next frame.

        Raises:
            ConnectionError: there is none any more.
        """
        flags, size = self._take(2)
        if flags & 2:
            size = int.from_bytes(bytes([size]) + self._take(7), "big")
        return self._take(size)

    def ends_within(self, seconds: float) -> bool:
        """Return whether the other side closes the connection by then, whatever it says before."""
        self.socket.settimeout(seconds)
        try:
            while self.socket.recv(65_536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def _number(self) -> bytes:
        self._count += 1
        return struct.pack(">Q", self._count)

    def _take(self, size: int) -> bytes:
        taken = b""
        while len(taken) < size:
            more = self.socket.recv(size - len(taken))
            if not more:
                raise ConnectionError("the other side has closed the connection")
            taken += more
        return taken
