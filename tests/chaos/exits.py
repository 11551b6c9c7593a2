"""Programs that connect, submit and end at once: ``python3 -m tests.chaos.exits --programs 10000``.

A program is a client that is opened, given a few tasks and left, in one of the ways in which people
leave one; some are processes of their own. A third of them runs while the broker is killed and
started again all the time. In the end the broker is started once more, and every id that no program
was told to be unacknowledged must be in what it lists.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from d8mesh.apps.demo import free_ports
from d8mesh.config import Config
from d8mesh.errors import NotAcknowledgedError
from d8mesh.nodes.client import Client

ROOT: Final = Path(__file__).resolve().parents[2]
#: Programs of this process, and processes, at the same time.
THREADS: Final = 8
PROCESSES: Final = 3
#: How long the broker lives and is away while it is restarted all the time.
LIFE_S: Final = (0.05, 0.8)
AWAY_S: Final = (0.0, 0.4)
#: A close that some programs do not give the time it takes.
SHORT_S: Final = 0.02
#: A process that takes longer hangs.
PROCESS_S: Final = 60.0
ID: Final = re.compile(r"\b[0-9a-v]{16}-\d+\b")

#: Ways in which a process ends; the ids are printed before it does.
ENDINGS: Final = (
    "",
    "client.close()",
    "sys.exit(0)",
    "del client",
    "raise LookupError",
    "client.__exit__(None, None, None)",
    "threading.Timer(0.05, submit).start()",
)
PROGRAM: Final = """
import sys, threading
from d8mesh import Client
client = Client()
def submit():
    print(client.submit("nobody", {{}}).id, flush=True)
for _ in range({count}):
    submit()
{ending}
"""


@dataclass(slots=True)
class Counts:
    """What became of all programs."""

    programs: int = 0
    processes: int = 0
    programs_while_restarting: int = 0
    restarts: int = 0
    submitted: int = 0
    in_journal: int = 0
    reported: int = 0
    reported_but_in_journal: int = 0
    lost: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Ids:
    """Thread: any."""

    submitted: set[str] = field(default_factory=set)
    reported: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, submitted: set[str], reported: set[str]) -> None:
        with self.lock:
            self.submitted |= submitted
            self.reported |= reported


class Orchestrator:
    """A broker in a process of its own, which may be killed and started at any time."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.config = Config(
            mesh=f"exits-{secrets.token_hex(4)}",
            interfaces=("127.0.0.1",),
            data_dir=str(folder),
            broker_port=self.port,
        )
        self.environment = os.environ | {
            "D8_MESH": self.config.mesh,
            "D8_INTERFACES": "127.0.0.1",
            "D8_DATA_DIR": str(folder),
            "D8_BROKER_PORT": str(self.port),
            "D8_NO_ENV_FILE": "1",
            "PYTHONPATH": str(ROOT),
        }
        self.restarts = 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it is up."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "d8mesh", "_broker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        told = json.loads(self._process.stdout.readline())
        assert told["port"] == self.port, told

    def kill(self) -> None:
        """End it as a power failure would."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            self._process = None

    def restart_until(self, stop: threading.Event, dice: random.Random) -> None:
        """Kill and start it again and again; it is up in the end."""
        while not stop.wait(dice.uniform(*LIFE_S)):
            self.kill()
            stop.wait(dice.uniform(*AWAY_S))
            self.start()
            self.restarts += 1

    def client(self) -> Client:
        """Return a new client of it."""
        return Client(endpoint=f"tcp://127.0.0.1:{self.port}", config=self.config)


def run(*, programs: int, processes: int, seed: int, say: Callable[[str], None]) -> Counts:
    """Run all programs; return what became of them."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="d8-exits-") as name:
        (Path(name) / "orchestrator").mkdir()
        orchestrator, ids = Orchestrator(Path(name)), Ids()
        orchestrator.start()
        try:
            calm = (programs - programs // 3, processes - processes // 3)
            _run_all(orchestrator, ids, *calm, seed)
            say(f"{sum(calm)} programs have ended; now the broker is restarted all the time")
            stop, dice = threading.Event(), random.Random(seed)
            troubler = threading.Thread(target=orchestrator.restart_until, args=(stop, dice))
            troubler.start()
            _run_all(orchestrator, ids, programs // 3, processes // 3, seed + 1)
            stop.set()
            troubler.join()
            orchestrator.kill()  # what is listed now is what its disk has
            orchestrator.start()
            counts = _judge(orchestrator, ids)
        finally:
            orchestrator.kill()
    counts.programs, counts.processes = programs + processes, processes
    counts.programs_while_restarting = programs // 3 + processes // 3
    counts.restarts, counts.seconds = orchestrator.restarts, round(time.monotonic() - begun, 1)
    return counts


def _run_all(
    orchestrator: Orchestrator, ids: Ids, programs: int, processes: int, seed: int
) -> None:
    with ThreadPoolExecutor(THREADS) as here, ThreadPoolExecutor(PROCESSES) as apart:
        done = [here.submit(_program, orchestrator, ids, seed * 10**6 + n) for n in range(programs)]
        done += [apart.submit(_process, orchestrator, ids, n) for n in range(processes)]
        for each in done:
            each.result()


def _program(orchestrator: Orchestrator, ids: Ids, seed: int) -> None:
    """Be one program: connect, submit, leave."""
    dice = random.Random(seed)
    submitted: set[str] = set()
    reported: set[str] = set()
    leave = dice.choice((_by_with, _by_with, _by_error, _by_close, _by_short_close))
    try:
        leave(orchestrator.client(), submitted, dice)
    except NotAcknowledgedError as error:
        reported.update(error.task_ids)
    except LookupError as error:
        reported.update(ID.findall(" ".join(getattr(error, "__notes__", []))))
    ids.note(submitted, reported)


def _submit(client: Client, submitted: set[str], dice: random.Random) -> None:
    for _ in range(dice.randint(1, 3)):
        submitted.add(client.submit("nobody", {}, priority=dice.choice((5, 5, 6))).id)


def _by_with(client: Client, submitted: set[str], dice: random.Random) -> None:
    with client:
        _submit(client, submitted, dice)


def _by_error(client: Client, submitted: set[str], dice: random.Random) -> None:
    with client:
        _submit(client, submitted, dice)
        raise LookupError


def _by_close(client: Client, submitted: set[str], dice: random.Random) -> None:
    _submit(client, submitted, dice)
    client.close()


def _by_short_close(client: Client, submitted: set[str], dice: random.Random) -> None:
    _submit(client, submitted, dice)
    client.close(SHORT_S)


def _process(orchestrator: Orchestrator, ids: Ids, number: int) -> None:
    """Be one program in a process of its own, which looks for the orchestrator itself."""
    program = PROGRAM.format(count=1 + number % 3, ending=ENDINGS[number % len(ENDINGS)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=orchestrator.environment,
        capture_output=True,
        text=True,
        timeout=PROCESS_S,
        check=False,
    )
    ids.note(set(ID.findall(done.stdout)), set(ID.findall(done.stderr)))


def _judge(orchestrator: Orchestrator, ids: Ids) -> Counts:
    with orchestrator.client() as client:
        stored = {str(body["task_id"]) for body in client.tasks()}
    return Counts(
        submitted=len(ids.submitted),
        in_journal=len(ids.submitted & stored),
        reported=len(ids.reported),
        reported_but_in_journal=len(ids.reported & stored),
        lost=len(ids.submitted - ids.reported - stored),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the exit code is 1 if anything was lost without a word."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.chaos.exits", description=__doc__)
    parser.add_argument("--programs", type=int, default=1000, help="in this process")
    parser.add_argument("--processes", type=int, default=20, help="processes of their own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    counts = run(
        programs=options.programs,
        processes=options.processes,
        seed=options.seed,
        say=lambda text: None if options.json else print(text, flush=True),
    )
    if options.json:
        print(json.dumps(asdict(counts)))
    else:
        for name, value in asdict(counts).items():
            print(f"{name:>26}  {value}")
    return 1 if counts.lost else 0


if __name__ == "__main__":
    sys.exit(main())
