"""Speaks with a peer's script: a line of JSON each way, never for longer than is bearable."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import psutil

from bench.processes import kill_tree
from bench.raw_loop import HOME
from d8mesh.errors import D8Error

#: An answer may take that long: the slowest peer does 300 tasks/s, Ray's start takes 10 s.
ANSWER_S: Final = 120.0
#: What is read of the end of a peer's errors, to say why it failed.
TAIL_BYTES: Final = 2000


class Session:
    """A running peer.

    Args:
        process: its script.
        errors: what it and its workers print.
        keeps: what is left of its tasks after a power cut.

    Raises:
        D8Error: it did not come up.
    """

    def __init__(
        self, process: subprocess.Popen[str], errors: IO[bytes], keeps: str, answer_s: float
    ) -> None:
        self.keeps: Final = keeps
        self._process = process
        self._errors = errors
        self._answer_s = answer_s
        self.versions: Final[dict[str, str]] = dict(self._answer("start")["versions"])

    def throughput(self, tasks: int) -> float:
        """Return the tasks per second of `tasks` no-ops, first submit to last result."""
        return float(self._ask({"ask": "throughput", "tasks": tasks})["rate"])

    def latencies(self, count: int) -> list[float]:
        """Return the seconds of each of `count` tasks, one in flight."""
        return list(self._ask({"ask": "latencies", "count": count})["seconds"])

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it ended: the answer says so
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self._answer(question["ask"])

    def _answer(self, to: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        watch = threading.Timer(self._answer_s, self._process.kill)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            was_late = not watch.is_alive()
            watch.cancel()
        if was_late:
            raise D8Error(f"no answer to {to} within {self._answer_s:g} s: {self._tail()}")
        if not line:
            raise D8Error(f"it ended at {to}: {self._tail()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _tail(self) -> str:
        end = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, end - TAIL_BYTES))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


@contextlib.contextmanager
def session(
    command: Sequence[str],
    settings: Mapping[str, str],
    folder: Path,
    keeps: str,
    *,
    answer_s: float = ANSWER_S,
) -> Iterator[Session]:
    """Start a peer's script and end it, with all that it started."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=folder,
            env={**os.environ, **settings, "PYTHONPATH": str(HOME)},
            text=True,
            encoding="utf-8",
            start_new_session=True,  # POSIX; Ctrl-C of the bench ends it through the tree
        )
        try:
            yield Session(process, errors, keeps, answer_s)
        finally:
            started = _family(process.pid)
            with contextlib.suppress(psutil.Error):
                kill_tree(process.pid)
            for each in started:  # orphans of orphans: what had left the tree when it was killed
                with contextlib.suppress(psutil.Error):
                    each.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _family(pid: int) -> list[psutil.Process]:
    """Return the processes of the session that `pid` leads, daemons of Ray and Parsl too."""
    if not hasattr(os, "getsid"):
        return []
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if each.pid != pid and os.getsid(each.pid) == pid:
                found.append(each)
    return found
