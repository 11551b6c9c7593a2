"""Other d8mesh commands as child processes: started, listened to, ended with us.

A child's standard input is a pipe of ours; when it closes, by `close` or by our death, the
child drains and ends (`processes.parent.end_with_parent`).
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import IO, Final

from d8mesh.config import SECRET_NAMES
from d8mesh.processes.parent import ask_to_end, exit_code_of, start_child

#: How long children may take to drain before they are killed.
CHILDREN_DRAIN_S: Final = 15.0
#: Lines of a child's output that are kept for when it fails.
KEPT_LINES: Final = 50


class RunningCommand:
    """One running command."""

    def __init__(
        self, name: str, process: subprocess.Popen[str], on_line: Callable[[str], None] | None
    ) -> None:
        self.name = name
        self._on_line = on_line
        self.process = process
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        #: set when the child has said its first line: it is up
        self.is_up = threading.Event()
        assert process.stdout is not None
        self._pump = threading.Thread(target=self._listen, args=(process.stdout,), daemon=True)
        self._pump.start()

    @property
    def is_running(self) -> bool:
        """True while the process lives."""
        return self.process.poll() is None

    def close_input(self) -> None:
        """Tell it to drain and end."""
        ask_to_end(self.process)

    def wait(self, timeout_s: float) -> int:
        """Wait for its end, killing it when `timeout_s` is over; return its exit code."""
        try:
            return exit_code_of(self.process, timeout_s)
        finally:
            self._pump.join(1.0)  # what the child has started may go on saying something

    def _listen(self, stream: IO[str]) -> None:
        with contextlib.suppress(OSError, ValueError), stream:
            for line in stream:
                self.lines.append(line.rstrip())
                self.is_up.set()
                if self._on_line is not None:
                    self._on_line(line.rstrip())


class Children:
    """Child commands; a context manager that ends them all.

    Args:
        settings: variable -> value, given to every child over what it would inherit.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = dict(settings)
        self._children: list[RunningCommand] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(
        self,
        name: str,
        *arguments: str,
        settings: Mapping[str, str] = MappingProxyType({}),
        on_line: Callable[[str], None] | None = None,
    ) -> RunningCommand:
        """Start ``d8mesh arguments`` with some more `settings` of its own.

        `on_line` is called, on a thread of its own, with each line that the child says.
        """
        all_set = {**self._settings, **settings}
        given = [f"--set={key}={all_set[key]}" for key in all_set if key not in SECRET_NAMES]
        secret = {key: all_set[key] for key in all_set if key in SECRET_NAMES}
        process = start_child(
            *arguments, "--with-parent", *given, stderr=subprocess.STDOUT, more_env=secret
        )
        child = RunningCommand(name, process, on_line)
        self._children.append(child)
        return child

    def close(self) -> None:
        """Let all drain, the last started first, and wait for them."""
        deadline = time.monotonic() + CHILDREN_DRAIN_S
        before = _ignore_interrupts()
        try:
            for child in reversed(self._children):
                child.close_input()
                child.wait(max(0.1, deadline - time.monotonic()))
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)
        self._children.clear()


def _ignore_interrupts() -> signal.Handlers | None:
    """An impatient second Ctrl-C must not leave children behind."""
    if threading.current_thread() is not threading.main_thread():
        return None
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    return before if isinstance(before, signal.Handlers) else signal.default_int_handler  # type: ignore[return-value]
