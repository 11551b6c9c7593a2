"""The parent's side of one child with a model: started, asked whether it lives, ended."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Final
from urllib.parse import urlsplit

import msgspec

from d8mesh.backends.embedded.server import Order
from d8mesh.backends.streaming import WANTED_LOOK_S, shown
from d8mesh.edge.child.group import NEW_GROUP, ProcessGroup
from d8mesh.errors import BackendStalledError

#: A child that is killed is gone within this, or hangs in the kernel.
GONE_S: Final = 5.0
#: Its last lines are kept for when it fails.
LAST_LINES: Final = 8
#: One line of them.
MAX_LOG_LINE_CHARS: Final = 2000
#: After a broken connection the end of the process is seen within this.
END_SEEN_S: Final = 1.0
_KEY_BYTES: Final = 24


class ModelRefusedError(Exception):
    """llama.cpp could not load the model, or died of it; the message says why."""


class ModelProcess:
    """One child, from its start to its end.

    Args:
        model: what it is called here.
        order: what it loads; the key is made here.

    Raises:
        OSError: it cannot be started.

    Thread: any; two threads of its own read what it says.
    """

    def __init__(self, model: str, order: Order) -> None:
        self.model, self.order = model, order
        self.key = secrets.token_urlsafe(_KEY_BYTES)
        self.url = ""
        self.load_s = 0.0
        #: tokens a second of its quickest answer
        self.quickest = 0.0
        #: it was ended here, on purpose
        self.is_ended = False
        self._began = time.monotonic()
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "d8mesh.backends.embedded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            **NEW_GROUP,
        )
        self._group = ProcessGroup(self._process)
        self._threads = [
            threading.Thread(target=target, name=f"model-{name}", daemon=True)
            for name, target in (("said", self._hear), ("log", self._keep), ("end", self._watch))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """True until it has ended."""
        return self._threads[-1].is_alive()

    @property
    def ending(self) -> str:
        """How it ended, in words, with the last that it said."""
        code = self._process.returncode
        how = f"exit code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = f"killed by {signal.Signals(-code).name}"
        return f"{how}; it said: {shown(self._last[-1])}" if self._last else how

    def load(self, check: Callable[[], None], *, within_s: float) -> None:
        """Wait until the model is loaded; the child is ended if it is not.

        Args:
            check: called several times a second; what it raises ends the child.

        Raises:
            ModelRefusedError: llama.cpp refused the file, or died of it.
            BackendStalledError: not within `within_s` seconds of its start.
        """
        try:
            order = msgspec.structs.replace(self.order, key=self.key)
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):  # it has died: that is seen below
                self._process.stdin.write(msgspec.json.encode(order) + b"\n")
                self._process.stdin.flush()
            line = self._line(check, within_s)
            answer = json.loads(line) if line else {}
            if "url" not in answer:
                raise ModelRefusedError(self._why(answer))
            self.url = str(answer["url"])
            self.load_s = time.monotonic() - self._began
        except BaseException:
            self.end()
            raise

    def is_answering(self, within_s: float) -> bool:
        """Ask whether it still answers: a process that is stopped or stuck does not."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=within_s)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    def has_died(self) -> bool:
        """Return whether it is gone, for who has just lost its connection."""
        self._threads[-1].join(END_SEEN_S)
        return not self.is_alive

    def end(self) -> None:
        """End it now, whatever it is doing."""
        self.is_ended = True
        self._group.kill()
        for thread in self._threads:
            thread.join(GONE_S)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _line(self, check: Callable[[], None], within_s: float) -> str | None:
        until = self._began + within_s
        while True:
            check()
            with contextlib.suppress(queue.Empty):
                return self._said.get(timeout=WANTED_LOOK_S)
            if time.monotonic() > until:
                raise BackendStalledError(
                    f"llama.cpp did not load {self.model!r} within {within_s:g} s"
                )

    def _why(self, answer: object) -> str:
        """Return why it could not be loaded: the first complaint says most."""
        for line in self._last:
            _, found, reason = line.partition("error loading model: ")
            if found:
                return shown(reason)
        if isinstance(answer, dict) and "error" in answer:
            return shown(str(answer["error"]))
        self.has_died()
        return self.ending

    def _hear(self) -> None:
        with _closing(self._process.stdout) as stream:
            for line in stream:
                self._said.put(line.decode("utf-8", "replace"))
        self._said.put(None)

    def _keep(self) -> None:
        with _closing(self._process.stderr) as stream:
            while line := stream.readline(MAX_LOG_LINE_CHARS):
                if line.strip():
                    self._last.append(line.decode("utf-8", "replace").strip())

    def _watch(self) -> None:
        self._group.wait()


@contextlib.contextmanager
def _closing(stream: IO[bytes] | None) -> Iterator[IO[bytes]]:
    assert stream is not None
    with contextlib.suppress(OSError, ValueError), stream:
        yield stream
