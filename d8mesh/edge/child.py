"""Child processes that run handlers: bytes to standard input, bytes from standard output.

A frame is four bytes of length (big endian) and a msgpack array. A child ends when its
standard input does. A handler in a process can be killed; one in a thread cannot.
"""

from __future__ import annotations

import contextlib
import os
import queue
import struct
import subprocess
import sys
import threading
from typing import IO, Any, Final

import msgspec

from d8mesh.core.messages import MAX_FRAME_BYTES

LENGTH: Final = struct.Struct(">I")
#: How long a child that was killed may take to be gone.
KILL_S: Final = 5.0

if sys.platform == "win32":
    _NEW_GROUP: Final = subprocess.CREATE_NEW_PROCESS_GROUP
else:
    _NEW_GROUP: Final = 0


class Child:
    """One child that runs one handler, again and again.

    Args:
        function: ``MODULE:FUNCTION`` of the handler.

    Thread: that of one slot; a thread of its own reads.
    """

    def __init__(self, function: str) -> None:
        arguments = [sys.executable, "-m", "d8mesh", "_process", function]
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            creationflags=_NEW_GROUP,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[bytes] = self._process.stdin
        #: what the child says; None at its end
        self.said: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._read, args=(self._process.stdout,), name="child-reader", daemon=True
        )
        self._thread.start()

    def tell(self, frame: list[object]) -> bool:
        """Send one frame; False if the child is gone."""
        try:
            self._stdin.write(packed(frame))
            self._stdin.flush()
        except (OSError, ValueError):
            return False
        return True

    def kill(self) -> None:
        """End the child now."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._end()

    def close(self) -> None:
        """Let the child end, and see that it does."""
        with contextlib.suppress(OSError, ValueError):
            self._stdin.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._end()

    @property
    def exit_code(self) -> int | None:
        """The exit code once it is gone."""
        return self._process.poll()

    def _end(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_S)
        self._thread.join(KILL_S)

    def _read(self, stdout: IO[bytes]) -> None:
        with stdout:
            while (frame := unpacked(stdout)) is not None:
                self.said.put(frame)
        self.said.put(None)


def packed(frame: list[object]) -> bytes:
    """Return a frame with its length before it."""
    body = msgspec.msgpack.encode(frame)
    return LENGTH.pack(len(body)) + body


def unpacked(stream: IO[bytes]) -> list[Any] | None:
    """Read one frame; None at the end of the stream, or if what comes is no frame."""
    try:
        head = stream.read(LENGTH.size)
        if len(head) < LENGTH.size:
            return None
        (size,) = LENGTH.unpack(head)
        body = stream.read(size) if size <= 2 * MAX_FRAME_BYTES else b""
        return msgspec.msgpack.decode(body, type=list) if len(body) == size else None
    except (OSError, ValueError, msgspec.DecodeError):
        return None
