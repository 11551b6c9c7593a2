"""The processes of a chaos run, and what is done to them."""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from d8mesh.core.protocol.membership import fingerprint
from d8mesh.edge.transport.keys import public_key_in
from d8mesh.errors import D8Error
from tests.chaos import people, rest
from tests.chaos.diary import Diary
from tests.chaos.evidence import Happening
from tests.chaos.schedule import SUDDEN, Event
from tests.chaos.world import World
from tests.end_to_end.processes import child_running

START_S: Final = 60.0
#: What is left of a disk that is full but for a little: submits are refused, results get in.
LITTLE_BYTES: Final = 60_000_000
#: How long the mesh may take to finish what is left once it is left alone.
DRAIN_S: Final = 120.0
#: A copy of a worker works at least so long after its process began.
CLONE_STARTS_S: Final = 3.0
#: How long a start on a full disk takes to fail.
START_FAILS_S: Final = 5.0
PROGRESS_S: Final = 5.0
CLIENTS: Final = 2
#: The orchestrator's machine, the clients', and that of the client that reaches 7001 only.
OTHER_MACHINES: Final = 3


@dataclass(slots=True)
class Stage:
    """The processes, and what is done to them."""

    world: World
    workers: int
    rate: float
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    #: when a process that ended may be started again (monotonic seconds)
    away: dict[str, float] = field(default_factory=dict)
    #: stopped process ids
    paused: dict[str, int] = field(default_factory=dict)
    #: (when, number, what): ends of pauses and partitions
    undo: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    happened: list[Happening] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    #: processes that ended without a reason
    crashes: list[str] = field(default_factory=list)
    #: processes that have a reason to end
    doomed: set[int] = field(default_factory=set)
    #: copies of workers, which are not brought back
    clones: list[subprocess.Popen[str]] = field(default_factory=list)
    is_blocked: bool = False
    is_disk_full: bool = False
    full_until: float = 0.0
    #: for whoever looks into a violation later
    diary: Diary = field(init=False)

    def __post_init__(self) -> None:
        self.diary = Diary(self.world.log / "events.jsonl")

    def set_up(self, backlog: int) -> None:
        """Start everything, queue what nobody will run, and wait until workers are there."""
        if self.world.lan:  # the last worker and the last client get through to 7001 only
            for machine in (self.workers, self.workers + 2):
                self.world.narrow(machine)
            names = [f"worker-{self.workers - 1}", f"client-{CLIENTS - 1}"]
            self.diary.note("narrow", names=names)
        if self.world.approves:
            self._appoint()
        self._start("orchestrator")
        if backlog:
            self._queue(backlog)
        for number in range(self.workers):
            self._start(f"worker-{number}")
        for number in range(CLIENTS):
            self._start(f"client-{number}")
        self._start("caller-0")
        self._start("rest-0")
        self._start("poller-0")
        self._start("slow-0")
        until = time.monotonic() + START_S
        while not any(True for _ in self.world.log.glob("runs-*.jsonl")):
            if time.monotonic() > until:
                raise D8Error(f"no task ran within {START_S:.0f} s: see {self.world.folder}/*.out")
            time.sleep(0.1)

    def _appoint(self) -> None:
        """Have somebody who lets in who wants to join, and a token for who asks over HTTP."""
        world = self.world
        (world.log / people.OUT).mkdir()
        scopes = ("--scope", "submit", "--scope", "work")
        made = world.command(0, "orchestrator", "token", "create", "chaos", *scopes, "--json")
        said = world.folder / "orchestrator.out"
        if made.wait(START_S):
            raise D8Error(f"no token was made: see {said}")
        world.token = json.loads(said.read_text("utf-8").splitlines()[-1])["token"]
        data = str(world.folder / "orchestrator")
        world.start(0, "people", ["tests.chaos.people", str(world.log), world.mesh, data])

    def _queue(self, count: int) -> None:
        world = self.world
        url = "" if world.lan else world.url
        module = ["tests.chaos.backlog", str(world.log), world.mesh, url, str(count)]
        if world.start(self.workers + 1, "backlog", module).wait(START_S * 3):
            raise D8Error(f"the backlog was not accepted: see {world.folder}/backlog.out")

    def play(self, events: list[Event], say: Callable[[str], None]) -> None:
        """Let the events happen at their times."""
        started = time.monotonic()
        next_word = started + PROGRESS_S
        for event in events:
            while (now := time.monotonic()) < started + event.at_s:
                self.tend(now)
                if now >= next_word:
                    next_word = now + PROGRESS_S
                    say(f"{now - started:6.0f} s  {self.summary()}")
                time.sleep(0.05)
            self.strike(event)

    def summary(self) -> str:
        """Return one line of what has happened so far."""
        said = ", ".join(f"{kind} {count}" for kind, count in sorted(self.counts.items()))
        return said or "nothing yet"

    def tend(self, now: float) -> None:
        """Bring back what is due, and end pauses that are over."""
        while self.undo and self.undo[0][0] <= now:
            heapq.heappop(self.undo)[2]()
        self._notice_traps()
        for name, process in self.processes.items():
            if process.poll() is not None and now >= self.away.setdefault(name, now):
                if self._is_done(name):
                    continue
                del self.away[name]
                self._ended(name, process)
                self._start(name)
                break  # one at a time: starting costs a second of a slow machine

    def _notice_traps(self) -> None:
        for name, point in self.world.traps.sprung():
            what = "broker" if name == "orchestrator" else "worker"
            pid = self.processes[name].pid
            self.doomed.update([pid] if what == "worker" else [])
            self._happened(f"kill {what} at {point.name}", [pid], 0.0)

    def _ended(self, name: str, process: subprocess.Popen[str]) -> None:
        self._notice_traps()
        self.diary.note("ended", name=name, pid=process.pid, code=process.returncode)
        # An orchestrator that is started on a full disk says so and ends: whoever starts it
        # tries again, as is done here.
        is_excused = name == "orchestrator" and time.monotonic() < self.full_until + START_FAILS_S
        if process.pid not in self.doomed and not is_excused:
            self.crashes.append(f"{name} (exit code {process.returncode})")

    def strike(self, event: Event) -> None:
        """Do one thing."""
        kind, _, what = event.kind.partition(" ")
        done = {
            "kill": self._kill,
            "fail": self._fail,
            "full": self._fill_disk,
            "clone": self._clone,
            "restart": self._restart,
            "pause": self._pause,
            "revoke": self._revoke,
            "partition": self._isolate,
            "link": self._link_down,
            "one": self._block,
            "new": self._move,
        }[kind](what, event)
        if done and kind != "fail":  # that is yet to happen
            lasts_s = 0.0 if event.kind.startswith(SUDDEN) else event.lasts_s
            self._happened(event.kind, done, lasts_s)

    def _happened(self, kind: str, targets: list[int], lasts_s: float) -> None:
        self.counts[kind.partition(" at ")[0]] += 1
        self.happened.append(Happening(kind, time.monotonic(), targets, lasts_s))
        self.diary.note(kind, targets=targets, lasts_s=lasts_s)

    def drain(self, say: Callable[[str], None]) -> bool:
        """Leave the mesh alone; return whether every client saw all its outcomes."""
        self.world.traps.disarm()
        for _, _, action in sorted(self.undo, key=lambda row: row[:2]):
            action()
        self.undo.clear()
        (self.world.log / "stop").touch()
        until = time.monotonic() + DRAIN_S
        clients = [name for name in self.processes if name.startswith(_AWAITED)]
        while not all(self._is_done(name) for name in clients):
            if time.monotonic() > until:
                return False
            self.tend(time.monotonic())
            time.sleep(0.05)
        say("drained")
        return True

    def end(self) -> None:
        """Stop everything in order, so that the journal is whole."""
        for name, process in self.processes.items():
            if name != "orchestrator":
                process.terminate()
        for clone in self.clones:
            clone.terminate()
        self.diary.close()
        self.processes["orchestrator"].terminate()
        try:
            self.processes["orchestrator"].wait(40)
        except subprocess.TimeoutExpired as error:
            raise D8Error("the orchestrator does not end within 40 s") from error

    # ---------------------------------------------------------------- single faults

    def _kill(self, what: str, event: Event) -> list[int]:
        if what in ("broker", "web"):
            child = child_running(self.processes["orchestrator"].pid, f"_{what}")
            pids = [] if child is None else [child]
        elif what == "orchestrator":
            pids = self._group()
        else:
            name = self._pick(("worker",) if what == "worker" else _CLIENTS, event)
            pids = [self.processes[name].pid] if self._is_running(name) else []
            self.away[name] = time.monotonic() + event.lasts_s
        self.doomed.update(pids)
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        return pids

    def _fail(self, what: str, event: Event) -> list[int]:
        """Have a process die when it next comes by a named point; `tend` sees it."""
        name = "orchestrator" if what == "broker" else self._pick((what,), event)
        traps, process = self.world.traps, self.processes[name]
        if traps.is_armed(name) or not self._is_running(name):
            return []
        pid = child_running(process.pid, "_broker") if what == "broker" else process.pid
        point = traps.arm(name, what, event.target)
        if point.push is not None and pid is not None:
            self.doomed.add(pid)
            _signal(pid, point.push)
            if point.push == signal.SIGKILL:
                self._happened("kill broker", [pid], 0.0)
        return []

    def _fill_disk(self, what: str, event: Event) -> list[int]:
        disk = self.world.disk
        if disk is None or self.is_disk_full:
            return []
        self.is_disk_full = True
        self.full_until = time.monotonic() + event.lasts_s
        disk.fill(leave_bytes=event.target % 2 * LITTLE_BYTES)

        def empty() -> None:
            disk.empty()
            self.is_disk_full = False

        self._later(event.lasts_s, empty)
        return [1]

    def _clone(self, what: str, event: Event) -> list[int]:
        """Start a copy of a worker's data folder beside it, or on the next machine."""
        name = self._pick((what,), event)
        number = int(name.partition("-")[2])
        if not self._is_running(name) or name in self.paused:
            return []
        self.counts["clones started"] += 1
        copy = f"clone-{self.counts['clones started']}"
        pid = self.processes[name].pid
        _signal(pid, signal.SIGSTOP)  # as if the card were taken out
        try:
            shutil.copytree(
                self.world.folder / name,
                self.world.folder / copy,
                ignore=shutil.ignore_patterns("lock", "logs"),
            )
        finally:
            _signal(pid, signal.SIGCONT)
        machine = 1 + (number + event.target // 7 % 2) % self.workers
        process = self.world.command(machine, copy, *_WORKER)
        self.clones.append(process)
        self._later(event.lasts_s + CLONE_STARTS_S, process.terminate)
        return [process.pid]

    def _restart(self, what: str, event: Event) -> list[int]:
        name = self._pick((what,), event)
        if not self._is_running(name):
            return []
        pid = self.processes[name].pid
        self.doomed.add(pid)
        _signal(pid, signal.SIGTERM)
        return [pid]

    def _pause(self, what: str, event: Event) -> list[int]:
        name = "broker" if what == "broker" else self._pick((what,), event)
        if what == "broker":
            pid = child_running(self.processes["orchestrator"].pid, "_broker")
        else:
            pid = self.processes[name].pid if self._is_running(name) else None
        if pid is None or name in self.paused:
            return []
        self.paused[name] = pid
        _signal(pid, signal.SIGSTOP)

        def go_on() -> None:
            del self.paused[name]
            _signal(pid, signal.SIGCONT)

        self._later(event.lasts_s, go_on)
        return [pid]

    def _revoke(self, what: str, event: Event) -> list[int]:
        """Have a worker shown out, and let in again later."""
        name = self._pick((what,), event)
        keys = [public_key_in(each) for each in (self.world.folder / name / "workers").glob("*")]
        for key in filter(None, keys):
            new = self.world.log / "out.new"
            new.write_text(f"{event.lasts_s:.2f}", "ascii")
            new.replace(self.world.log / people.OUT / fingerprint(key))
        return [self.processes[name].pid] if any(keys) else []

    def _isolate(self, what: str, event: Event) -> list[int]:
        machine = event.target % (self.workers + OTHER_MACHINES)
        self.world.isolate(machine)
        self._later(event.lasts_s, lambda: self.world.rejoin(machine))
        return [machine]

    def _link_down(self, what: str, event: Event) -> list[int]:
        machine = event.target % (self.workers + OTHER_MACHINES)
        if machine in self.world.down:
            return []
        self.world.link(machine, is_up=False)
        self._later(event.lasts_s, lambda: self.world.link(machine, is_up=True))
        return [machine]

    def _block(self, what: str, event: Event) -> list[int]:
        if self.is_blocked:
            return []
        self.is_blocked = True
        self.world.block(is_on=True)

        def open_again() -> None:
            self.is_blocked = False
            self.world.block(is_on=False)

        self._later(event.lasts_s, open_again)
        return [1]

    def _move(self, what: str, event: Event) -> list[int]:
        if 0 in self.world.down:
            return []  # a card that is down has no routes to be given
        self.world.move_orchestrator()
        return [1]

    # ---------------------------------------------------------------------- helpers

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.undo, (time.monotonic() + delay_s, len(self.happened), action))

    def _pick(self, kinds: tuple[str, ...], event: Event) -> str:
        names = [name for name in self.processes if name.startswith(kinds)]
        return names[event.target % len(names)]

    def _is_running(self, name: str) -> bool:
        return self.processes[name].poll() is None

    def _is_done(self, name: str) -> bool:
        """Tell whether a process has ended as it should."""
        if not name.startswith(_AWAITED):
            return name.startswith("slow") and (self.world.log / "stop").exists()
        return rest.is_drained(self.world.log / f"client-{name}.jsonl")

    def _group(self) -> list[int]:
        launcher = self.processes["orchestrator"].pid
        children = [child_running(launcher, name) for name in ("_broker", "_web")]
        return [launcher, *(pid for pid in children if pid is not None)]

    def _start(self, name: str) -> None:
        world, log = self.world, str(self.world.log)
        kind, _, number = name.partition("-")
        last = self.workers + 1
        if kind == "orchestrator":
            process = world.command(0, name, "orchestrator")
        elif kind == "worker":
            process = world.command(1 + int(number), name, *_WORKER)
        elif kind == "client":
            url = "" if world.lan else world.url
            rate = str(self.rate / CLIENTS)
            module = ["tests.chaos.load", name, log, world.mesh, url, rate]
            is_narrow = world.lan is not None and int(number) == CLIENTS - 1
            process = world.start(last + is_narrow, name, module)
        elif kind == "caller":
            url = "" if world.lan else world.url
            module = ["tests.chaos.caller", name, log, world.mesh, url]
            process = world.start(last, name, module)
        elif kind == "slow":
            port = str(world.broker_port)
            process = world.start(last, name, ["tests.chaos.slow", log, port, world.mesh])
        else:
            role = "submit" if kind == "rest" else "poll"
            process = world.start(last, name, ["tests.chaos.rest", role, name, log, "5"])
        self.processes[name] = process
        self.diary.note("started", name=name, pid=process.pid)


_WORKER: Final = ("worker", "--tasks", "tests.chaos.handlers", "--slots", "4")
_CLIENTS: Final = ("client", "caller", "rest", "poller")
#: Those that end by themselves once they have seen every outcome.
_AWAITED: Final = ("client", "caller", "rest")


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
