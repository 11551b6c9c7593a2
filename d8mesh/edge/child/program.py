"""A program of somebody else's as a child: its output goes to a file, it ends with this process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from d8mesh.edge.child import leash
from d8mesh.edge.child.group import NEW_GROUP, ProcessGroup
from d8mesh.private import make_file

#: Beyond what the program itself gets to end.
PROGRAM_END_S: Final = leash.LEASH_END_S + 2.0
#: Of the file, as much as is looked at for the last line.
LAST_LINE_BYTES: Final = 4096
#: Of a line, as much as is shown.
MAX_LAST_LINE_CHARS: Final = 300


class Program:
    """A running program.

    Args:
        command: the program's path first.
        env: variables that it gets beside those of this process.
        log: its output goes there, in place of what an earlier one left.

    Raises:
        OSError: it cannot be started, or the file not be written.

    Thread: any.
    """

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], log: Path) -> None:
        self.log = log
        make_file(log)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(leash.__file__), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(env),
                **NEW_GROUP,
            )
        self._group = ProcessGroup(self._process)

    @property
    def is_running(self) -> bool:
        """False once it has ended."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Its exit code once it has ended."""
        return self._process.poll()

    def last_line(self) -> str:
        """Return the last line that it wrote; "" if there is none."""
        with contextlib.suppress(OSError), self.log.open("rb") as written:
            written.seek(max(0, written.seek(0, os.SEEK_END) - LAST_LINE_BYTES))
            lines = written.read().decode("utf-8", "replace").split("\n")
            told = [line.strip() for line in lines if line.strip()]
            return told[-1][:MAX_LAST_LINE_CHARS] if told else ""
        return ""

    def close(self) -> None:
        """End it, and all that it has started; waits for that."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PROGRAM_END_S)
            return
        self._group.kill()
        self._process.wait()
