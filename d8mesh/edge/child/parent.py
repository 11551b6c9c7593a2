"""What a child has of its parent: frames that come, frames that go, and its death.

Nothing a handler does to standard input, output or to descriptors in general may hang or
corrupt what is said here; when the connection is lost, the process ends.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import sys
import threading
from typing import Any, Final

import msgspec

from d8mesh.edge.child.frames import READ_BYTES, Unpacker, packed, write_all
from d8mesh.edge.child.group import end_own_group
from d8mesh.errors import HandlerError

#: The exit code of a child whose handler closed the descriptors of this conversation.
EXIT_CUT_OFF: Final = 71
#: How often a child looks whether its parent lives, beside waiting for the pipe's end:
#: a process that the parent forked may hold that open.
LOOK_MS: Final = 500


class Parent:
    """The worker that started this process.

    Args:
        pipes: the descriptors (on Windows handles) to read from and to write to, as texts.

    Thread: `tell` any; frames come in `frames`.

    Raises:
        HandlerError: there are no such pipes.
    """

    def __init__(self, pipes: list[str]) -> None:
        self.frames: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._pid, self._parent_pid = os.getpid(), os.getppid()
        self._lock = threading.Lock()
        try:
            self._input, self._output = _opened(int(pipes[0]), int(pipes[1]))
            self._input_place, self._output_place = _place(self._input), _place(self._output)
        except (IndexError, ValueError, OSError) as error:
            raise HandlerError(
                "this command is started by a worker, for a handler with process=True"
            ) from error
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def tell(self, frame: list[object]) -> None:
        """Send one frame; without a connection this process ends.

        Raises:
            HandlerError: this is a process that the handler forked.
        """
        if os.getpid() != self._pid:
            raise HandlerError("emit() in a process that the handler forked: emit in its own")
        data = packed(frame)
        with self._lock:
            try:
                if _place(self._output) == self._output_place:
                    write_all(self._output, data)
                    return
            except OSError:
                pass
        self._cut_off()

    def _listen(self) -> None:
        """Take frames in until the parent is gone: nothing here may outlive it."""
        unpacker = Unpacker()
        try:
            while data := self._read():
                for frame in unpacker.feed(data):
                    self.frames.put(frame)
        except (OSError, ValueError, msgspec.DecodeError):
            self._cut_off()
        end_own_group()

    def _read(self) -> bytes:
        """Return what comes next; nothing: the parent is gone.

        Raises:
            OSError: the descriptor is ours no longer.
        """
        if sys.platform != "win32":
            poll = select.poll()
            poll.register(self._input, select.POLLIN)
            while not poll.poll(LOOK_MS):
                if os.getppid() != self._parent_pid:
                    return b""
        if _place(self._input) != self._input_place:
            raise OSError("another file has this descriptor now")
        return os.read(self._input, READ_BYTES)

    def _cut_off(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # closed, full or gone
                stream.flush()
        os._exit(EXIT_CUT_OFF)


def _opened(reading: int, writing: int) -> tuple[int, int]:
    """Return descriptors that nothing inherits which this process starts."""
    if sys.platform == "win32":
        import msvcrt

        for handle in (reading, writing):
            os.set_handle_inheritable(handle, False)
        return (
            msvcrt.open_osfhandle(reading, os.O_RDONLY | os.O_BINARY),
            msvcrt.open_osfhandle(writing, os.O_WRONLY | os.O_BINARY),
        )
    for descriptor in (reading, writing):
        os.set_inheritable(descriptor, False)
    return reading, writing


def _place(descriptor: int) -> tuple[int, int]:
    """Return what tells a pipe from any other file."""
    seen = os.fstat(descriptor)
    return seen.st_dev, seen.st_ino
