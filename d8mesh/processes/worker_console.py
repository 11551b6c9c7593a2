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
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from d8mesh.core.protocol.addresses import LOOPBACK
from d8mesh.core.protocol.addresses import endpoint as url_of
from d8mesh.edge.logs import escape
from d8mesh.edge.terminal import say_anyway
from d8mesh.program import command_name
from d8mesh.words import tr, translated

#: How often an orchestrator is looked for while there is none, to say so.
ORCHESTRATOR_LOOK_S: Final = 0.1
#: The same once it has joined one: an idle worker shall cost nothing.
LATER_LOOK_S: Final = 2.0
#: Without an orchestrator for this long, people are told what to check; later again and again.
PATIENCE_S: Final = 10.0
REMIND_S: Final = 600.0
#: What was done is told at most this often.
INTERVAL_S: Final = 60.0
#: While it drains, how many still run is told this often.
DRAIN_TELL_S: Final = 5.0
#: Reasons that are said, each once.
MAX_REASONS: Final = 100
#: Names in one line.
MAX_NAMED: Final = 8
MIN_COLUMNS: Final = 40
_INDENT: Final = "  "
#: Why an orchestrator is lost whose place is taken.
_REPLACED: Final = "another orchestrator answers there now"


class WorkerConsole:
    """Tells people what happens to a worker.

    Args:
        status: returns the body of its status page.
        url: ORCHESTRATOR_URL, if it is set.

    Thread: `run` on its own; the rest from any.
    """

    def __init__(
        self,
        status: Callable[[], Mapping[str, Any]],
        *,
        mesh: str,
        url: str | None = None,
        tell: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._status, self._mesh, self._url = status, mesh, url
        self._tell = tell or say_wrapped
        self._clock = clock
        self._name = ""
        self._joined: dict[str, str] = {}  # broker id -> endpoint
        self._lost: dict[str, float] = {}  # broker id -> since when
        self._said: set[str] = set()  #: why orchestrators were refused or passed over
        self._outbox = ""
        self._alone_since = self._remind_at = 0.0
        self._counted, self._count_at = (0, 0), 0.0
        self._drain_at: float | None = None
        self._lock = threading.Lock()
        self._early: list[str] | None = []

    # ------------------------------------------------------------------- what happens

    def begin(
        self, *, folder: object, interfaces: str, wanted: str | None = None, host: str = LOOPBACK
    ) -> None:
        """Say who the worker is, what it offers, and where it looks.

        Args:
            interfaces: that mDNS uses, for people.
            wanted: the id that it was given, if any; it may have got another.
            host: where its status page can be opened.
        """
        status = self._status()
        self._name = str(status["called_before"] or status["worker_id"])
        kind, slots = status["worker_type"], status["slots"]
        self._say_tr(
            "worker {id} ({kind}), d8mesh {version}, mesh {mesh}",
            id=self._name,
            kind=kind,
            version=status["version"],
            mesh=self._mesh,
        )
        if wanted and wanted != self._name:
            self._say_tr(
                "another worker on this machine is called {wanted}: this one is {id}",
                wanted=wanted,
                id=self._name,
            )
        self._say_tr("data in {folder}", folder=folder)
        types = _named(status["task_types"])
        self._say_tr("takes {tasks} at once: {types}", tasks=_tasks(slots), types=types)
        if status["status_port"]:
            url = url_of(host, status["status_port"], "http")
            self._say_tr("status page: {url}", url=f"{url}/health")
        self._tell(self._where_it_looks(interfaces))
        now = self._clock()
        self._alone_since, self._remind_at = now, now + PATIENCE_S
        self._count_at = now + INTERVAL_S
        with self._lock:
            early, self._early = self._early or [], None
        for text in early:
            self.notice(text)

    def _where_it_looks(self, interfaces: str) -> str:
        named = interfaces or tr("no interface")
        fields = {"id": self._name, "mesh": self._mesh, "interfaces": named}
        if self._url:
            return tr(
                "worker {id}: looking for orchestrators of mesh {mesh} by mDNS on {interfaces}, "
                "and at {url}",
                **fields,
                url=self._url,
            )
        return tr(
            "worker {id}: looking for orchestrators of mesh {mesh} by mDNS on {interfaces}",
            **fields,
        )

    def notice(self, text: str) -> None:
        """Say what people should know; after who this is, however early it is known."""
        with self._lock:
            if self._early is not None:
                self._early.append(text)
                return
        self._say_tr("note: {text}", text=translated(text))

    def network_notice(self, text: str) -> None:
        """Say what is wrong with finding others, such as that mDNS does not work here."""
        is_said = "ORCHESTRATOR_URL" in text or self._url is not None
        hint = tr("; ORCHESTRATOR_URL=http://ADDRESS:7001 names an orchestrator")
        self.notice(translated(text) + ("" if is_said else hint))

    def say(self, text: str) -> None:
        """Say a finished line."""
        self._tell(text)

    def drain(self, running: int, drain_s: float) -> None:
        """Say that the worker was told to stop."""
        if running:
            left = tr("1 task still runs and gets")
            if running > 1:
                left = tr("{count} tasks still run and get", count=running)
            self._say_tr(
                "draining: {left} up to {seconds} s, nothing new is taken; "
                "Ctrl-C again stops at once",
                left=left,
                seconds=f"{drain_s:.0f}",
            )
        else:
            self._say_tr("stopping: no task runs here; what has not started is given back")
        self._drain_at = self._clock() + DRAIN_TELL_S

    def end(self) -> None:
        """Say what it has done."""
        status = self._status()
        done, failed = int(status["tasks_completed"]), int(status["tasks_failed"])
        running = int(status["running"])
        told = tr(
            "worker {id} stopped: {done} done, {failed} failed",
            id=self._name,
            done=done,
            failed=failed,
        )
        if running:
            told += tr(
                "; {tasks} did not end in time and will run elsewhere", tasks=_tasks(running)
            )
        self._tell(told)

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set. Thread: its own."""
        while not stop.wait(LATER_LOOK_S if self._joined else ORCHESTRATOR_LOOK_S):
            self.look()

    def look(self) -> None:
        """Tell what is new since the last look."""
        status, now = self._status(), self._clock()
        if status["worker_id"] != self._name:
            before, self._name = self._name, str(status["worker_id"])
            self._say_tr(
                "another worker of the mesh is called {before}: this one goes on as {id}",
                before=before,
                id=self._name,
            )
            program = command_name()
            self._say_tr(
                "if that was this machine, and its key file is lost: run {forget} at the "
                "orchestrator, then start here {worker}",
                forget=f"{program} join forget {before}",
                worker=f"{program} worker --name {before}",
            )
        self._look_at_orchestrators(status, now)
        for why in self._news(status["refused"]):
            self._say_tr("an orchestrator refuses this worker: {why}", why=translated(why))
        for why in self._news(status["passed_over"]):
            self._say_tr("an orchestrator is passed over: {why}", why=translated(why))
        outbox = str(status["outbox"] or "")
        if outbox != self._outbox:
            self._outbox = outbox
            taken = tr("tasks are taken again")
            refused = tr("no new tasks are taken: {why}", why=translated(outbox))
            self._tell(refused if outbox else taken)
        self._look_at_work(status, now)

    def _news(self, whys: Iterable[str]) -> list[str]:
        """Return which of these reasons are new; whoever makes up many fills no console."""
        news = [why for why in whys if why not in self._said][: MAX_REASONS - len(self._said)]
        self._said.update(news)
        return news

    def _say_tr(self, text: str, /, **values: object) -> None:
        self._tell(tr(text, **values))

    def _look_at_orchestrators(self, status: Mapping[str, Any], now: float) -> None:
        found = {each["broker_id"]: each["endpoint"] for each in status["orchestrators"]}
        found = {broker_id: place for broker_id, place in found.items() if place}
        whys = {each["broker_id"]: each["why"] for each in status["lost"]}
        for broker_id, endpoint in self._joined.items():
            if broker_id not in found and endpoint in found.values():
                whys.setdefault(broker_id, _REPLACED)
        for broker_id, endpoint in list(self._joined.items()):
            if broker_id in whys and broker_id not in found:
                del self._joined[broker_id]
                self._lost[broker_id] = now
                self._say_tr(
                    "lost {orchestrator} at {endpoint}: {why}. Looking for it; what runs "
                    "goes on and its results are kept",
                    orchestrator=broker_id,
                    endpoint=endpoint,
                    why=translated(str(whys[broker_id])),
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
            self._remind_at, alone_s = now + REMIND_S, now - self._alone_since
            if not status["refused"] and not status["passed_over"]:
                self._tell(self._what_to_check(alone_s))
            elif alone_s >= REMIND_S:
                self._said.clear()  # one is there, and why it is not joined is said once more

    def _what_to_check(self, alone_s: float) -> str:
        if self._url:
            more = tr("Does {url} (ORCHESTRATOR_URL) answer?", url=self._url)
        else:
            more = tr(
                "If mDNS does not get through: ORCHESTRATOR_URL=http://ADDRESS:7001 names one"
            )
        return tr(
            "no orchestrator found for {span}: looking on. Is one running (`{program} "
            "orchestrator`), with D8_MESH={mesh}, in this network? {more}",
            span=_span(alone_s),
            program=command_name(),
            mesh=self._mesh,
            more=more,
        )

    def _look_at_work(self, status: Mapping[str, Any], now: float) -> None:
        running = int(status["running"])
        if self._drain_at is not None:
            if running and now >= self._drain_at:
                self._drain_at = now + DRAIN_TELL_S
                self._say_tr("draining: {tasks} still running", tasks=_tasks(running))
            return
        if now < self._count_at:
            return
        took_s, self._count_at = now - self._count_at + INTERVAL_S, now + INTERVAL_S
        counted = (int(status["tasks_completed"]), int(status["tasks_failed"]))
        done, failed = (new - old for new, old in zip(counted, self._counted, strict=True))
        self._counted = counted
        if done or failed:
            self._say_tr(
                "in the last {seconds} s: {done} done, {failed} failed, {running} running",
                seconds=f"{took_s:.0f}",
                done=done,
                failed=failed,
                running=running,
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
    say_anyway(line)


def _joined(worker_id: str, broker_id: str, endpoint: str, *, after_s: float | None) -> str:
    back = "" if after_s is None else tr("back after {span}: ", span=_span(after_s))
    where = {"id": worker_id, "orchestrator": broker_id, "endpoint": endpoint}
    if not endpoint.startswith("http"):
        return back + tr("worker {id} joined {orchestrator} at {endpoint}", **where)
    return back + tr(
        "worker {id} joined {orchestrator} at {endpoint} over HTTP: its ZeroMQ port cannot be "
        "reached; open it for full speed",
        **where,
    )


def _tasks(count: int) -> str:
    return tr("1 task") if count == 1 else tr("{count} tasks", count=count)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _named(names: Any) -> str:
    listed = [str(name) for name in names]
    more = ""
    if len(listed) > MAX_NAMED:
        more = tr(" and {count} more", count=len(listed) - MAX_NAMED)
    return (", ".join(listed[:MAX_NAMED]) or tr("nothing yet")) + more
