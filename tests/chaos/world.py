"""The machines of a chaos run: all on loopback, or each in a network namespace of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from d8mesh.apps.demo import free_ports
from tests.chaos import disk as small_disk
from tests.chaos.disk import Disk
from tests.chaos.traps import Traps
from tests.end_to_end.hosts import NETWORK, Host, Lan

ROOT: Final = Path(__file__).resolve().parents[2]
#: Where the orchestrator goes when its address changes: NETWORK.100, NETWORK.101, …
FIRST_NEW_ADDRESS: Final = 100
WEB_PORT: Final = 7001


class World:
    """Where processes run; a context manager that leaves none behind.

    Args:
        folder: for the data folders and the output of every process.
        lan: None for loopback. Host 0 is the orchestrator's; those behind the workers' are the
            clients'.
        has_disk: the orchestrator's data folder is a small disk of its own.
        approves: keys are let in by a person only (`tests.chaos.people`).
    """

    def __init__(
        self, folder: Path, lan: Lan | None, *, has_disk: bool = False, approves: bool = False
    ) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.lan, self.approves = lan, approves
        #: what shows at the HTTP port that one may ask there; "" where nothing need be shown
        self.token = ""
        #: without one nobody gets through 7001 alone to an orchestrator that mDNS has told of
        self.mesh_key = secrets.token_urlsafe(24) if approves and lan is not None else ""
        self.disk = Disk(folder / "orchestrator") if has_disk else None
        self.traps = Traps(self.log)
        self.mesh = f"chaos-{os.getpid()}"
        self._processes: list[subprocess.Popen[str]] = []
        self._outputs: list[IO[str]] = []
        self._moves = 0
        self._apart: set[int] = set()
        #: machines whose card is down
        self.down: set[int] = set()
        self._web_port, self.broker_port, self._status_port = (
            (WEB_PORT, 7010, 7200) if lan else free_ports(3)
        )

    def __enter__(self) -> Self:
        self.log.mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            if self.disk is not None:
                stack.enter_context(self.disk)
            if self.lan is not None:
                stack.enter_context(self.lan)
            self._write_url()
            self._places = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
        for output in self._outputs:
            output.close()
        self._places.__exit__(kind, error, trace)

    @property
    def url(self) -> str:
        """The orchestrator's address as seen by the clients."""
        address = self.lan.hosts[0].address if self.lan else "127.0.0.1"
        return f"http://{address}:{self._web_port}"

    def command(self, machine: int, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a d8mesh command on machine number `machine`."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        settings = {
            "D8_NO_ENV_FILE": "1",
            "D8_MESH": self.mesh,
            "D8_DATA_DIR": str(home),
            "D8_INTERFACES": "" if self.lan else "127.0.0.1",
            "D8_BROKER_PORT": str(self.broker_port),
            "FLASK_PORT": str(self._web_port),
            "FLASK_HOST": "0.0.0.0" if self.lan else "127.0.0.1",
            "WORKER_STATUS_PORT": str(self._status_port),
            "ORCHESTRATOR_URL": "",
            "WORKER_ID": "",
            "TASK_TIMEOUT": "30",
            "MAX_RETRY_ATTEMPTS": "20",
            "D8_FAILPOINT": self.traps.setting(name),
            "D8_JOIN": "approve" if self.approves else "",
        }
        if self.disk is not None:
            settings["D8_DISK_RESERVE_MB"] = str(small_disk.RESERVE_MB)
        return self.start(machine, name, ["d8mesh", *arguments], settings)

    def start(
        self, machine: int, name: str, module: list[str], settings: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start ``python -m module`` on machine number `machine`."""
        output = (self.folder / f"{name}.out").open("a", encoding="utf-8")
        self._outputs.append(output)
        argv = [sys.executable, "-m", *module]
        shown = {"D8_TOKEN": self.token, "D8_MESH_KEY": self.mesh_key}
        env = {"PYTHONPATH": str(ROOT), **shown, **(settings or {})}
        if self.lan is not None:
            return self._host(machine).popen(argv, env=env, stdout=output, stderr=output)
        process = subprocess.Popen(
            argv,
            env={**os.environ, **env},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            encoding="utf-8",
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def isolate(self, machine: int) -> None:
        """Cut a machine off; nobody can tell but by silence."""
        assert self.lan is not None
        self._apart.add(machine)
        self._split()

    def rejoin(self, machine: int) -> None:
        """Take `isolate` back."""
        self._apart.discard(machine)
        self._split()

    def link(self, machine: int, *, is_up: bool) -> None:
        """Take a machine's card down or up."""
        host = self._host(machine)
        if is_up:
            self.down.discard(machine)
            host.link_up()
        else:
            self.down.add(machine)
            host.link_down()

    def block(self, *, is_on: bool) -> None:
        """Drop in silence what comes for the broker's ports; its own words still get out."""
        host = self._host(0)
        if is_on:
            host.block_tcp(7010, 7019)
        else:
            host.unblock_tcp(7010, 7019)

    def narrow(self, machine: int) -> None:
        """Let a machine get through to the orchestrator's REST port only, now and for ever."""
        self._host(0).block_tcp(7010, 7019, source=self._host(machine).address)

    def move_orchestrator(self) -> None:
        """Give the orchestrator's machine another address."""
        self._moves += 1
        self._host(0).change_address(f"{NETWORK}.{FIRST_NEW_ADDRESS + self._moves % 100}")
        self._write_url()

    def _split(self) -> None:
        assert self.lan is not None
        self.lan.partition([self._host(machine) for machine in self._apart])

    def _host(self, machine: int) -> Host:
        assert self.lan is not None
        return self.lan.hosts[machine]

    def _write_url(self) -> None:
        new = self.log / "url.new"
        new.write_text(self.url, "utf-8")
        new.replace(self.log / "url")
