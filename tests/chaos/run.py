"""The command `chaos`: a real mesh under load while its parts are killed, paused and cut off.

Every run prints its seed, what happened, and the table of counts of docs/RELIABILITY.md. The exit
code is 1 if anything acknowledged was lost, recorded twice, wrong or stuck.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from d8mesh.config import Config
from d8mesh.errors import D8Error
from tests.chaos import rest, schedule, verdict
from tests.chaos.schedule import Event
from tests.chaos.world import World
from tests.end_to_end import hosts
from tests.end_to_end.hosts import Lan
from tests.end_to_end.processes import child_running

START_S: Final = 60.0
#: How long the mesh may take to finish what is left once it is left alone.
DRAIN_S: Final = 120.0
PROGRESS_S: Final = 5.0
CLIENTS: Final = 2


def run(config: Config, options: argparse.Namespace) -> int:
    """Run the fault runner with the arguments of the command line."""
    del config
    arguments = _parser().parse_args(options.rest)
    if not sys.platform.startswith("linux"):
        raise D8Error("chaos looks processes up in /proc: run it on Linux")
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    reason = "asked for" if arguments.loopback else hosts.available()
    where = f"loopback only ({reason})" if reason else "network namespaces"
    _say(arguments, f"chaos: seed {seed}, {arguments.minutes:g} min, {where}")
    folder = Path(arguments.keep or tempfile.mkdtemp(prefix="d8-chaos-"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it clears up
    lan = None if reason else Lan(hosts=arguments.workers + 2)
    counts = run_in(folder, lan, seed=seed, arguments=arguments)
    told = {"seed": seed, "where": where, **counts}
    if arguments.json:
        print(json.dumps(told, ensure_ascii=False))
    else:
        for name, value in told.items():
            print(f"{name:>34}  {value}")
    is_good = not any(counts[name] for name in ("lost", "dup_results", "wrong", "stuck"))
    if is_good and not arguments.keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _say(arguments, f"kept: {folder}")
    return 0 if is_good else 1


def run_in(
    folder: Path, lan: Lan | None, *, seed: int, arguments: argparse.Namespace
) -> dict[str, object]:
    """Run one history in `folder` and return its counts."""
    events = schedule.draw(seed=seed, seconds=arguments.minutes * 60, has_network=lan is not None)
    with World(folder, lan) as world:
        stage = Stage(world, arguments.workers, arguments.rate)
        stage.set_up(arguments.backlog)
        stage.play(events, lambda text: _say(arguments, text))
        is_drained = stage.drain(lambda text: _say(arguments, text))
        stage.end()
    return verdict.judge(folder, stage.happened, is_drained=is_drained)


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
    happened: list[verdict.Happening] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    is_blocked: bool = False

    def set_up(self, backlog: int) -> None:
        """Start everything, queue what nobody will run, and wait until workers are there."""
        self._start("orchestrator")
        if backlog:
            self._queue(backlog)
        for number in range(self.workers):
            self._start(f"worker-{number}")
        for number in range(CLIENTS):
            self._start(f"client-{number}")
        self._start("rest-0")
        self._start("poller-0")
        until = time.monotonic() + START_S
        while not any(True for _ in self.world.log.glob("runs-*.jsonl")):
            if time.monotonic() > until:
                raise D8Error(f"no task ran within {START_S:.0f} s: see {self.world.folder}/*.out")
            time.sleep(0.1)

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
        for name, process in self.processes.items():
            if process.poll() is not None and now >= self.away.setdefault(name, now):
                if name.startswith(("client", "rest")) and self._is_done(name):
                    continue
                del self.away[name]
                self._start(name)
                break  # one at a time: starting costs a second of a slow machine

    def strike(self, event: Event) -> None:
        """Do one thing."""
        kind, _, what = event.kind.partition(" ")
        done = {
            "kill": self._kill,
            "restart": self._restart,
            "pause": self._pause,
            "partition": self._isolate,
            "link": self._link_down,
            "one": self._block,
            "new": self._move,
        }[kind](what, event)
        if done:
            self.counts[event.kind] += 1
            self.happened.append(verdict.Happening(event.kind, time.monotonic(), done))

    def drain(self, say: Callable[[str], None]) -> bool:
        """Leave the mesh alone; return whether every client saw all its outcomes."""
        for _, _, action in sorted(self.undo, key=lambda row: row[:2]):
            action()
        self.undo.clear()
        (self.world.log / "stop").touch()
        until = time.monotonic() + DRAIN_S
        clients = [name for name in self.processes if name.startswith(("client", "rest"))]
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
        self.processes["orchestrator"].terminate()
        try:
            self.processes["orchestrator"].wait(40)
        except subprocess.TimeoutExpired as error:
            raise D8Error("the orchestrator does not end within 40 s") from error

    # ---------------------------------------------------------------- single faults

    def _kill(self, what: str, event: Event) -> list[int]:
        if what == "broker":
            broker = child_running(self.processes["orchestrator"].pid, "_broker")
            pids = [] if broker is None else [broker]
        elif what == "orchestrator":
            pids = self._group()
            self.away["orchestrator"] = time.monotonic() + min(event.lasts_s, 1.0)
        else:
            name = self._pick(("worker",) if what == "worker" else _CLIENTS, event)
            pids = [self.processes[name].pid] if self._is_running(name) else []
            self.away[name] = time.monotonic() + event.lasts_s
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        return pids

    def _restart(self, what: str, event: Event) -> list[int]:
        name = self._pick((what,), event)
        if not self._is_running(name):
            return []
        _signal(self.processes[name].pid, signal.SIGTERM)
        return [self.processes[name].pid]

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

    def _isolate(self, what: str, event: Event) -> list[int]:
        machine = event.target % (self.workers + 2)
        self.world.isolate(machine)
        self._later(event.lasts_s, lambda: self.world.rejoin(machine))
        return [machine]

    def _link_down(self, what: str, event: Event) -> list[int]:
        machine = event.target % (self.workers + 2)
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
            extra = ("worker", "--tasks", "tests.chaos.handlers", "--slots", "4")
            process = world.command(1 + int(number), name, *extra)
        elif kind == "client":
            url = "" if world.lan else world.url
            rate = str(self.rate / CLIENTS)
            process = world.start(
                last, name, ["tests.chaos.load", name, log, world.mesh, url, rate]
            )
        else:
            role = "submit" if kind == "rest" else "poll"
            process = world.start(last, name, ["tests.chaos.rest", role, name, log, "5"])
        self.processes[name] = process


_CLIENTS: Final = ("client", "rest", "poller")


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _say(arguments: argparse.Namespace, text: str) -> None:
    print(text, file=sys.stderr if arguments.json else sys.stdout, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="start_d8.py chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long (3)")
    parser.add_argument("--seed", type=int, help="the same seed, the same faults at the same times")
    parser.add_argument("--workers", type=int, default=4, help="mesh workers (4)")
    parser.add_argument("--rate", type=float, default=100.0, help="tasks per second (100)")
    parser.add_argument("--backlog", type=int, default=0, help="queued tasks nobody offers (0)")
    parser.add_argument("--loopback", action="store_true", help="no network namespaces")
    parser.add_argument("--json", action="store_true", help="the table as one JSON object")
    parser.add_argument("--keep", metavar="DIR", help="run in this new folder and keep it")
    return parser
