"""Frames between a worker and a child: four bytes of length (big endian), a msgpack array.

Also the two pipes they travel through, which are neither standard input nor output: those are
the handler's.
"""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from d8mesh.core.protocol.messages import MAX_FRAME_BYTES

LENGTH: Final = struct.Struct(">I")
#: Bytes read at once.
READ_BYTES: Final = 256 * 1024
#: Descriptors up to here are the standard ones, whether they are open or not.
_LAST_STANDARD: Final = 2


def packed(frame: list[object]) -> bytes:
    """Return a frame with its length before it."""
    body = msgspec.msgpack.encode(frame)
    return LENGTH.pack(len(body)) + body


class Unpacker:
    """Makes frames of bytes as they come."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[list[Any]]:
        """Return the frames that are complete with these bytes.

        Raises:
            ValueError: what came is no frame.
        """
        self._bytes += data
        frames: list[list[Any]] = []
        at = 0
        while len(self._bytes) - at >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._bytes, at)
            if size > 2 * MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes")
            end = at + LENGTH.size + size
            if len(self._bytes) < end:
                break
            body = bytes(self._bytes[at + LENGTH.size : end])
            frames.append(msgspec.msgpack.decode(body, type=list))
            at = end
        del self._bytes[:at]
        return frames


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it; waits while the pipe is full."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


@dataclass(slots=True)
class Pipes:
    """The pipes of one child: `tasks` go to it, and it answers in `said`."""

    tasks_read: int
    tasks_write: int
    said_read: int
    said_write: int

    @classmethod
    def make(cls) -> Pipes:
        """Open them; nothing that is started inherits them by itself."""
        tasks = _pipe()
        try:
            return cls(*tasks, *_pipe())
        except OSError:
            for each in tasks:
                os.close(each)
            raise

    def close_all(self) -> None:
        """Close both ends of both."""
        for each in (self.tasks_read, self.tasks_write, self.said_read, self.said_write):
            os.close(each)


def _pipe() -> tuple[int, int]:
    """Return a pipe whose ends are no standard descriptors, even if those are closed."""
    ends = os.pipe()
    if sys.platform == "win32" or min(ends) > _LAST_STANDARD:
        return ends
    import fcntl

    first = _LAST_STANDARD + 1
    high = tuple(fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, first) for each in ends)
    for each in ends:
        os.close(each)
    return high[0], high[1]
