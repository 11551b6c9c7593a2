"""A command of d8mesh as a child: started, asked to end, and how it hears of that.

It ends by a signal, or by the end of its standard input, which is a pipe of its parent's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from d8mesh.edge.installation import HERE

if sys.platform == "win32":
    _NEW_GROUP: Final[dict[str, Any]] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    _NEW_GROUP: Final[dict[str, Any]] = {"process_group": 0}


def start_child(
    *arguments: str, stderr: int | None = None, more_env: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[str]:
    """Start ``d8mesh arguments`` with pipes of ours as its standard input and output.

    A Ctrl-C is for us alone; what it means for the child we decide.

    Args:
        more_env: over what it inherits: command lines can be read by everybody on the machine.
    """
    return subprocess.Popen(
        HERE.command(*arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=HERE.start_folder,
        env={**os.environ, **more_env},
        **_NEW_GROUP,
    )


def ask_to_end(process: subprocess.Popen[str]) -> None:
    """Let a child drain and end: not by a signal, which on Windows would end it in mid-sentence."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()


def exit_code_of(process: subprocess.Popen[str], timeout_s: float) -> int:
    """Return a child's exit code as soon as it has ended; it is killed when `timeout_s` is over."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a process to end: Ctrl-C, and the system's own.

    On Windows that is Ctrl-Break, which reaches every process of a console, whatever its group;
    SIGTERM is never sent there.
    """
    other = "SIGBREAK" if sys.platform == "win32" else "SIGTERM"
    return (signal.SIGINT, getattr(signal, other))


def end_when_told(stop: Callable[[], None], *, with_parent: bool = True) -> None:
    """Call `stop` when a signal asks for it, or, if that is wanted, when the parent ends."""
    for number in stop_signals():
        signal.signal(number, lambda *_: stop())
    if with_parent:
        end_with_parent(stop)


def end_at_once_with_parent() -> Callable[[], None]:
    """End this process at once should its parent end before the returned function was called.

    A process that only begins has promised nothing, and would take what the next start needs.
    """
    is_up = threading.Event()
    end_with_parent(lambda: None if is_up.is_set() else os._exit(0))
    return is_up.set


def end_with_parent(stop: Callable[[], None]) -> None:
    """Call `stop` when standard input, a pipe of the parent's, comes to its end."""

    def watch() -> None:
        # Not through `sys.stdin`: its lock, held by this thread, would abort the interpreter
        # when it ends while nothing has come.
        with contextlib.suppress(OSError, ValueError):
            while os.read(sys.stdin.fileno(), 64):
                pass
        stop()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
