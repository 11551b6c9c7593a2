"""What a worker's console says: who it is, what happens to it, and how much it has done.

Reads the worker's status every now and then and tells what is new, a line each; on a terminal
long lines are wrapped between words.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from d8mesh.backends import Availability
from d8mesh.edge.logs import escape
from d8mesh.edge.terminal import say

#: How often an orchestrator is looked for while there is none, to say so.
LOOK_S: Final = 0.1
#: The same once it has joined one: an idle worker shall cost nothing.
LATER_LOOK_S: Final = 2.0
#: Without an orchestrator for this long, people are told what to check; later again and again.
PATIENCE_S: Final = 10.0
REMIND_S: Final = 600.0
#: What was done is told at most this often.
INTERVAL_S: Final = 60.0
#: While it drains, how many still run is told this often.
DRAIN_TELL_S: Final = 5.0
#: Names in one line.
MAX_NAMED: Final = 8
MIN_COLUMNS: Final = 40
_INDENT: Final = "  "


class Told(Protocol):
    """What the console needs of a worker."""

    @property
    def worker_id(self) -> str:
        """The id it goes by."""

    def status(self) -> dict[str, Any]:
        """Return the body of its status page."""


class Console:
    """Tells people what happens to a worker.

    Args:
        worker: asked for its status.
        mesh: the name of the mesh.
        url: ORCHESTRATOR_URL, if it is set.
        tell: prints one line.
        clock: monotonic seconds.

    Thread: `run` on its own; the rest from any.
    """

    def __init__(
        self,
        worker: Told,
        *,
        mesh: str,
        url: str | None = None,
        tell: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker, self._mesh, self._url = worker, mesh, url
        self._tell = tell or say_wrapped
        self._clock = clock
        self._name = ""
        self._joined: dict[str, str] = {}  # broker id -> endpoint
        self._lost: dict[str, float] = {}  # broker id -> since when
        self._refused: set[str] = set()
        self._outbox = ""
        self._alone_since = self._remind_at = 0.0
        self._counted, self._count_at = (0, 0), 0.0
        self._drain_at: float | None = None
        self._backend: Availability | None = None
        self._had_model = False
        self._lock = threading.Lock()
        self._early: list[str] | None = []

    # ------------------------------------------------------------------- what happens

    def begin(self, *, folder: object, interfaces: str) -> None:
        """Say who the worker is, what it offers, and where it looks."""
        status = self._worker.status()
        self._name = str(status["worker_id"])
        kind, slots = status["worker_type"], status["slots"]
        self._tell(f"worker {self._name} ({kind}), d8mesh {status['version']}, mesh {self._mesh}")
        self._tell(f"data folder: {folder}")
        self._tell(f"takes {_tasks(slots)} at once: {_named(status['task_types'])}")
        if status["status_port"]:
            self._tell(f"status page: http://127.0.0.1:{status['status_port']}/health")
        where = f"by mDNS on {interfaces or 'no interface'}"
        where += f", and at {self._url}" if self._url else ""
        self._tell(f"worker {self._name}: looking for orchestrators of mesh {self._mesh} {where}")
        now = self._clock()
        self._alone_since, self._remind_at = now, now + PATIENCE_S
        self._count_at = now + INTERVAL_S
        with self._lock:
            early, self._early = self._early or [], None
        for text in early:
            self.notice(text)

    def notice(self, text: str) -> None:
        """Say what people should know; after who this is, however early it is known."""
        with self._lock:
            if self._early is not None:
                self._early.append(text)
                return
        self._tell(f"note: {text}")

    def network_notice(self, text: str) -> None:
        """Say what is wrong with finding others, such as that mDNS does not work here."""
        is_said = "ORCHESTRATOR_URL" in text or self._url is not None
        hint = "" if is_said else "; ORCHESTRATOR_URL=http://ADDRESS:7001 names an orchestrator"
        self.notice(text + hint)

    def backend(self, seen: Availability, task_types: tuple[str, ...]) -> None:
        """Say what the language-model service offers, when that has changed."""
        before, self._backend = self._backend, seen
        types = " and ".join(task_types)
        if not seen.is_up:
            if before is None or before.reason != seen.reason:
                self._tell(f"no language model here, so {types} are not offered: {seen.reason}")
            return
        is_same = before is not None and before.is_up and before.url == seen.url
        if before is None or not is_same or before.models != seen.models:
            others = [name for name in seen.models if name != seen.default]
            named = f"; others: {_named(others)}" if others else ""
            back = "back: " if self._had_model and not is_same else ""
            self._had_model = True
            self._tell(f"{back}Ollama at {seen.url}: {types} with {seen.default}{named}")
            for name, why in list(seen.unfit.items())[:MAX_NAMED]:
                self._tell(f"{_INDENT}{name} is not offered: it {why}")
        if seen.warning and (before is None or before.warning != seen.warning):
            self._tell(f"note: {seen.warning}")

    def drain(self, running: int, drain_s: float) -> None:
        """Say that the worker was told to stop."""
        if running:
            ends = "runs and gets" if running == 1 else "run and get"
            self._tell(
                f"draining: {_tasks(running)} still {ends} up to {drain_s:.0f} s, "
                "nothing new is taken; Ctrl-C again stops at once"
            )
        else:
            self._tell("stopping: no task runs here; what has not started is given back")
        self._drain_at = self._clock() + DRAIN_TELL_S

    def end(self) -> None:
        """Say what it has done."""
        status = self._worker.status()
        done, failed = int(status["tasks_completed"]), int(status["tasks_failed"])
        running = int(status["running"])
        left = f"; {_tasks(running)} did not end in time and will run elsewhere" if running else ""
        self._tell(f"worker {self._name} stopped: {done} done, {failed} failed{left}")

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set. Thread: its own."""
        while not stop.wait(LATER_LOOK_S if self._joined else LOOK_S):
            self.look()

    def look(self) -> None:
        """Tell what is new since the last look."""
        status, now = self._worker.status(), self._clock()
        self._look_at_name(status)
        self._look_at_orchestrators(status, now)
        for why in [why for why in status["refused"] if why not in self._refused]:
            self._refused.add(why)
            self._tell(f"an orchestrator refuses this worker: {why}")
        outbox = str(status["outbox"] or "")
        if outbox != self._outbox:
            self._outbox = outbox
            self._tell(f"no new tasks are taken: {outbox}" if outbox else "tasks are taken again")
        self._look_at_work(status, now)

    # ------------------------------------------------------------------- private

    def _look_at_name(self, status: Mapping[str, Any]) -> None:
        name = str(status["worker_id"])
        if name != self._name:
            self._tell(f"another process works as {self._name}: this worker is now {name}")
            self._name = name

    def _look_at_orchestrators(self, status: Mapping[str, Any], now: float) -> None:
        found = {each["broker_id"]: each["endpoint"] for each in status["orchestrators"]}
        found = {broker_id: endpoint for broker_id, endpoint in found.items() if endpoint}
        whys = {each["broker_id"]: each["why"] for each in status["lost"]}
        for broker_id, endpoint in list(self._joined.items()):
            if broker_id in whys and broker_id not in found:
                del self._joined[broker_id]
                self._lost[broker_id] = now
                self._tell(
                    f"lost {broker_id} at {endpoint}: {whys[broker_id]}. Looking for it; what "
                    "runs goes on and its results are kept"
                )
                if not self._joined:
                    self._alone_since, self._remind_at = now, now + PATIENCE_S
        for broker_id, endpoint in found.items():
            if self._joined.get(broker_id) == endpoint:
                continue
            since = self._lost.pop(broker_id, None)
            self._joined[broker_id] = endpoint
            self._tell(_joined(self._name, broker_id, endpoint, after_s=since and now - since))
        if not self._joined and self._drain_at is None and now >= self._remind_at:
            self._remind_at = now + REMIND_S
            self._tell(self._what_to_check(now - self._alone_since))

    def _what_to_check(self, alone_s: float) -> str:
        if self._url:
            more = f"Does {self._url} (ORCHESTRATOR_URL) answer?"
        else:
            more = "If mDNS does not get through: ORCHESTRATOR_URL=http://ADDRESS:7001 names one"
        return (
            f"no orchestrator found for {_span(alone_s)}: looking on. Is one running "
            f"(start_d8.py orchestrator), with D8_MESH={self._mesh}, in this network? {more}"
        )

    def _look_at_work(self, status: Mapping[str, Any], now: float) -> None:
        running = int(status["running"])
        if self._drain_at is not None:
            if running and now >= self._drain_at:
                self._drain_at = now + DRAIN_TELL_S
                self._tell(f"draining: {_tasks(running)} still running")
            return
        if now < self._count_at:
            return
        took_s, self._count_at = now - self._count_at + INTERVAL_S, now + INTERVAL_S
        counted = (int(status["tasks_completed"]), int(status["tasks_failed"]))
        done, failed = (new - old for new, old in zip(counted, self._counted, strict=True))
        self._counted = counted
        if done or failed:
            self._tell(
                f"in the last {took_s:.0f} s: {done} done, {failed} failed, {running} running"
            )


def say_wrapped(text: str) -> None:
    """Print a line; on a terminal, wrapped between words to its width.

    A console that cannot be written (a full disk behind it) stops no worker and fails no task.
    """
    line = escape(text)
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout is not None and sys.stdout.isatty():
            columns = max(MIN_COLUMNS, shutil.get_terminal_size().columns)
            line = textwrap.fill(
                line,
                width=columns,
                subsequent_indent=_INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
        try:
            say(line)
        except UnicodeEncodeError:  # a pipe of an older code page
            say(line.encode("ascii", "backslashreplace").decode("ascii"))


def _joined(worker_id: str, broker_id: str, endpoint: str, *, after_s: float | None) -> str:
    back = "" if after_s is None else f"back after {_span(after_s)}: "
    line = f"{back}worker {worker_id} joined {broker_id} at {endpoint}"
    if endpoint.startswith("http"):
        line += " over HTTP: its ZeroMQ port cannot be reached; open it for full speed"
    return line


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _named(names: Any) -> str:
    listed = [str(name) for name in names]
    more = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
    return (", ".join(listed[:MAX_NAMED]) or "nothing yet") + more
