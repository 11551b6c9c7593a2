"""Bad news over mDNS (34 is in `test_rogue`): ignored, counted, and whoever works goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from d8mesh.core.protocol.announcement import NodeKind
from d8mesh.nodes.reconnector.trust import MAX_STRANGE
from tests.end_to_end.hosts import Host, Lan, available
from tests.end_to_end.processes import until
from tests.end_to_end.test_lan import ROOT, Machines
from tests.security.mdns_packets import txt_of

if reason := available():
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.namespace

#: What a flood may cost a node.
MAX_GROWTH_BYTES: Final = 40_000_000
BOSS_URL: Final = "http://127.0.0.1:7001/health"
_numbers: Final = count()

WORKS_ON: Final = """
import os, sys
from d8mesh import Client
from d8mesh.config import Config
with Client("http://127.0.0.1:7001", config=Config.from_env(os.environ)) as client:
    for line in sys.stdin:
        print(client.call("echo", {"n": line.strip()}, timeout=60)["output"]["n"], flush=True)
"""
STATUS: Final = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode())
"""


class Beset:
    """An orchestrator, a worker and a client that work, and a host that says what it likes."""

    def __init__(self, lan: Lan, folder: Path) -> None:
        self.boss, self.far, attacker = lan.hosts
        machines = Machines(lan, folder)
        self.mesh = machines.mesh
        machines.start(self.boss, "orchestrator")
        self.log = machines.start(self.far, "worker")
        self.worker_pid = self.far._processes[-1].pid
        until(lambda: "joined" in self.log.read_text("utf-8"), "a worker that joins")
        until(lambda: self._look(self.boss, BOSS_URL).returncode == 0, "its HTTP port")
        env = {
            "PYTHONPATH": str(ROOT), "D8_MESH": self.mesh, "D8_NO_ENV_FILE": "1",
            "D8_DATA_DIR": str(folder / "client"), "D8_INTERFACES": "",
        }  # fmt: skip
        self._client = self._talking(self.boss, "-c", WORKS_ON, env=env)
        self._packets = self._talking(attacker, "-m", "tests.security.mdns_packets", env=env)
        assert self._line(self._packets) == ""

    def goes_on(self) -> None:
        """See that tasks are run, by the session that stands since the beginning."""
        said = str(next(_numbers))
        self._say(self._client, said)
        assert self._line(self._client) == said
        text = self.log.read_text("utf-8")
        assert text.count("joined") == 1
        assert "lost" not in text

    def send(self, kind: NodeKind, label: str, txt: list[bytes], **more: Any) -> None:
        told = {"service": kind.value, "label": label, "txt": [each.hex() for each in txt], **more}
        self._say(self._packets, json.dumps(told))

    def sent(self) -> None:
        """Return when all packets have gone out."""
        self._say(self._packets, "")
        assert self._line(self._packets) == ""

    def ignored(self, kind: NodeKind) -> Counter[str]:
        """Return what was ignored of this kind, by who listens for it."""
        if kind is NodeKind.WORKER:
            told = self._asked(self.boss, BOSS_URL)["rejected"]["broker"]
        else:
            told = self.worker()["ignored"]
        return Counter({code: n for code, n in told.items() if code.startswith("mdns.")})

    def worker(self) -> dict[str, Any]:
        """Return what the worker's status page says."""
        return self._asked(self.far, "http://127.0.0.1:7200/health")

    def _asked(self, host: Host, url: str) -> dict[str, Any]:
        done = self._look(host, url)
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    @staticmethod
    def _look(host: Host, url: str) -> subprocess.CompletedProcess[str]:
        return host.run([sys.executable, "-c", STATUS, url])

    @contextmanager
    def refused(self, kind: NodeKind, code: str) -> Iterator[None]:
        """See that exactly one more is counted for this, and that all goes on."""
        before = self.ignored(kind)
        yield
        self.sent()
        until(lambda: self.ignored(kind) != before, f"{code} counted")
        self.goes_on()
        assert self.ignored(kind) - before == Counter({code: 1})

    @staticmethod
    def _talking(host: Host, *argv: str, env: dict[str, str]) -> subprocess.Popen[str]:
        return host.popen([sys.executable, *argv], env=env, stdin=subprocess.PIPE)

    @staticmethod
    def _say(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{line}\n")
        process.stdin.flush()

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().rstrip("\n")


@pytest.fixture(scope="module")
def beset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beset]:
    with Lan(hosts=3) as lan:
        yield Beset(lan, tmp_path_factory.mktemp("beset"))


def label() -> str:
    return f"rogue-{next(_numbers)}"


def resident_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(text.split("VmRSS:")[1].split()[0]) * 1024


@pytest.mark.parametrize("kind", NodeKind)
@pytest.mark.parametrize("ip", ["8.8.8.8", "224.0.0.1", "169.254.169.254", "0.0.0.0"])
def test_35_an_address_that_is_none_of_a_lan_is_ignored(
    beset: Beset, kind: NodeKind, ip: str
) -> None:
    with beset.refused(kind, "mdns.address"):
        beset.send(kind, label(), txt_of(beset.mesh, "rogue"), ip=ip)


@pytest.mark.parametrize("kind", NodeKind)
def test_35_port_0_is_ignored(beset: Beset, kind: NodeKind) -> None:
    with beset.refused(kind, "mdns.port"):
        beset.send(kind, label(), txt_of(beset.mesh, "rogue"), port=0)


def _oversize(mesh: str) -> list[bytes]:
    return txt_of(mesh, "rogue", *(b"pad%d=" % n + b"x" * 200 for n in range(8)))


BAD_RECORDS: Final[dict[str, Callable[[str], list[bytes]]]] = {
    "oversize": _oversize,
    "a key twice": lambda mesh: txt_of(mesh, "rogue", b"ID=again"),
    "not UTF-8": lambda mesh: txt_of(mesh, "rogue", b"note=\xff\xfe"),
    "no public key": lambda mesh: txt_of(mesh, "rogue", key="xyz"),
    "no proof": lambda mesh: txt_of(mesh, "rogue", b"proof=12"),
    "escapes in a name": lambda mesh: txt_of(mesh, "rogue\x1b[2J"),
    "nothing": lambda mesh: [],
}


@pytest.mark.parametrize("kind", NodeKind)
@pytest.mark.parametrize("what", BAD_RECORDS)
def test_36_a_record_that_is_none_of_ours_is_ignored(
    beset: Beset, kind: NodeKind, what: str
) -> None:
    with beset.refused(kind, "mdns.record"):
        beset.send(kind, label(), BAD_RECORDS[what](beset.mesh))


@pytest.mark.parametrize("ttl", [0, 1, 2**32 - 1])
def test_37_ten_thousand_services_with_absurd_lifetimes_change_nothing(
    beset: Beset, ttl: int
) -> None:
    for n in range(200):  # what is grown once is not grown by more
        beset.send(NodeKind.ORCHESTRATOR, f"warm{n}", txt_of(beset.mesh, f"warm{n}"))
    beset.sent()
    beset.goes_on()
    before = resident_bytes(beset.worker_pid)
    for n in range(10_000):
        name = f"flood{ttl}-{n}"
        txt = txt_of(beset.mesh, name, key=f"{n:064x}")
        beset.send(NodeKind.ORCHESTRATOR, name, txt, ttl=ttl, ip=f"10.77.{n >> 8}.{n & 255}")
    beset.sent()
    beset.goes_on()
    assert len(beset.worker()["passed_over"]) <= MAX_STRANGE
    assert resident_bytes(beset.worker_pid) - before < MAX_GROWTH_BYTES
    beset.goes_on()


def test_37_a_storm_of_goodbyes_in_the_name_of_the_right_one_closes_nothing(
    beset: Beset,
) -> None:
    """The names of services are public: everybody can say goodbye for everybody."""
    names = beset.boss.run([sys.executable, "-c", NAMES, NodeKind.ORCHESTRATOR.value])
    made_up = ("flood", "warm", "rogue")
    found = [line for line in names.stdout.split() if not line.startswith(made_up)]
    assert found, names.stderr
    for _ in range(500):
        for each in found:
            beset.send(NodeKind.ORCHESTRATOR, each, txt_of(beset.mesh, "gone"), ttl=0)
    beset.sent()
    beset.goes_on()
    (joined,) = beset.worker()["orchestrators"]
    assert joined["endpoint"].startswith("tcp://")


NAMES: Final = """
import sys, time
from zeroconf import ServiceBrowser, Zeroconf
found = []
class Ears:
    def add_service(self, zeroconf, kind, name): found.append(name)
    def update_service(self, *rest): pass
    def remove_service(self, *rest): pass
zeroconf = Zeroconf()
ServiceBrowser(zeroconf, sys.argv[1], Ears())
until = time.monotonic() + 5
while time.monotonic() < until and not any("rogue" not in n and "flood" not in n for n in found):
    time.sleep(0.05)
print("\\n".join(n.partition(".")[0] for n in found))
"""
