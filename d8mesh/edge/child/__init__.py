"""Child processes that run handlers, each in a process group of its own.

What is said goes through two pipes beside the standard ones; a child's standard input is
empty, and what it prints goes to this process's standard error. A child's death is known by
waiting for it, not by the end of a pipe, which a process it forked may hold open. A handler in
a process can be killed; one in a thread cannot.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import Any, Final

import msgspec

from d8mesh.edge.child.frames import READ_BYTES, Pipes, Unpacker, packed, write_all
from d8mesh.edge.child.group import NEW_GROUP, ProcessGroup
from d8mesh.edge.child.parent import EXIT_CUT_OFF

#: How long a child that was killed may take to be gone.
KILL_S: Final = 5.0
#: How long a child may take to end when it is told to.
CHILD_END_S: Final = 1.0
#: What a child said before its death has come in after this long, or never will.
LAST_WORDS_S: Final = 0.2
#: A frame up to this size fits into the empty pipe of an idle child: writing it cannot wait.
SMALL_BYTES: Final = 4096


class Child:
    """One child that runs one handler, again and again.

    Args:
        function: ``MODULE:FUNCTION`` of the handler.

    Raises:
        OSError: it cannot be started.

    Thread: that of one slot; threads of its own read, and wait for its end.
    """

    def __init__(self, function: str) -> None:
        pipes = Pipes.make()
        try:
            self._process = _start(function, pipes)
        except BaseException:
            pipes.close_all()
            raise
        os.close(pipes.tasks_read)
        os.close(pipes.said_write)
        self._group = ProcessGroup(self._process)
        self._tasks: int | None = pipes.tasks_write
        #: of the attempt that it is at; what its threads say of others is for nobody
        self._token: object = None
        #: what the child says; None at its end
        self.said: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._has_said_all = threading.Event()
        self._reader = threading.Thread(
            target=self._read, args=(pipes.said_read,), name="child-reader", daemon=True
        )
        self._watcher = threading.Thread(target=self._watch, name="child-watch", daemon=True)
        self._watcher.start()
        self._reader.start()

    def tell(self, frame: list[object]) -> bool:
        """Send one frame to an idle child; False if it is gone. Never waits for it.

        Args:
            frame: one attempt, its token first.
        """
        if self._tasks is None or not self._watcher.is_alive():
            return False
        self._token = frame[0]
        data = packed(frame)
        if len(data) > SMALL_BYTES:
            self._writer = threading.Thread(
                target=self._write, args=(data,), name="child-writer", daemon=True
            )
            self._writer.start()
            return True
        return self._write(data)

    def kill(self) -> None:
        """End the child, and all that it has started, now."""
        self._group.kill()
        self._end()

    def close(self) -> None:
        """Let the child end, and see that it does."""
        if self._writer is None or not self._writer.is_alive():
            self._close_tasks()
        self._watcher.join(CHILD_END_S)
        self.kill()

    @property
    def exit_code(self) -> int | None:
        """The exit code once it is gone; of a signal its negative number."""
        return self._process.returncode

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        code = self.exit_code
        if code == EXIT_CUT_OFF:
            return f"exit code {code}: its connection to the worker was closed, by the handler?"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def _end(self) -> None:
        self._watcher.join(KILL_S)
        self._reader.join(LAST_WORDS_S)
        if self._writer is not None:
            self._writer.join(KILL_S)
        self._close_tasks()

    def _close_tasks(self) -> None:
        if self._tasks is not None:
            with contextlib.suppress(OSError):
                os.close(self._tasks)
            self._tasks = None

    def _write(self, data: bytes) -> bool:
        try:
            assert self._tasks is not None
            write_all(self._tasks, data)
        except OSError:
            return False
        return True

    def _read(self, descriptor: int) -> None:
        """Take in what the child says. What is no frame ends it."""
        unpacker = Unpacker()
        try:
            while data := os.read(descriptor, READ_BYTES):
                for frame in unpacker.feed(data):
                    self._hear(frame)
        except (OSError, ValueError, msgspec.DecodeError):
            pass
        finally:
            os.close(descriptor)
            self._has_said_all.set()
        self._watcher.join(LAST_WORDS_S)  # it says by its exit code why, if it can
        self._group.kill()

    def _hear(self, frame: list[Any]) -> None:
        match frame:
            case ["chunk", token, *_] if token != self._token:
                return  # of a thread that an attempt left behind: it may never stop
            case ["end", *_]:
                self._token = None
        self.said.put(frame)

    def _watch(self) -> None:
        self._group.wait()
        self._has_said_all.wait(LAST_WORDS_S)
        self.said.put(None)


def _start(function: str, pipes: Pipes) -> subprocess.Popen[bytes]:
    passed: tuple[int, ...] = (pipes.tasks_read, pipes.said_write)
    inherited: dict[str, Any] = {"pass_fds": passed}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    if sys.platform == "win32":
        import msvcrt

        passed = tuple(msvcrt.get_osfhandle(each) for each in passed)
        for handle in passed:
            os.set_handle_inheritable(handle, True)
        handles = {"handle_list": list(passed)}
        inherited = {"startupinfo": subprocess.STARTUPINFO(lpAttributeList=handles)}
    command = [sys.executable, "-m", "d8mesh", "_process", function, *map(str, passed)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=environment, **inherited, **NEW_GROUP
    )
