"""Who is not let in is told why in one sentence, and what it says to do helps.

On the console of a worker, and by a command that needs the mesh; real processes, a host each.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.end_to_end.hosts import Host, Lan, available
from tests.end_to_end.processes import until
from tests.end_to_end.test_lan import ROOT, Machines

if reason := available():
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.namespace

KEY: Final = "the-key-of-this-mesh-4711"
ANOTHER: Final = "another-mesh-key-0123"


class Ends(Machines):
    """An orchestrator on one host; a worker and a person's command on two others."""

    def folder_of(self, host: Host) -> Path:
        return self.folder / f"kept-{self.lan.hosts.index(host)}"

    def begin(self, host: Host, *arguments: str, **settings: str) -> Path:
        """Start a command with the folder of its host."""
        self.folder_of(host).mkdir(exist_ok=True)
        return self.start(host, *arguments, D8_DATA_DIR=str(self.folder_of(host)), **settings)

    def run(self, host: Host, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command with the folder of its host to its end."""
        env = {
            "PYTHONPATH": str(ROOT), "D8_MESH": self.mesh, "D8_NO_ENV_FILE": "1",
            "D8_INTERFACES": "", "D8_DATA_DIR": str(self.folder_of(host)), **settings,
        }  # fmt: skip
        return host.run([sys.executable, "-m", "d8mesh", *arguments], env=env)

    def submit(self, **settings: str) -> str:
        """Have a person submit a task from the third host, in vain; return what that is told."""
        done = self.run(self.lan.hosts[2], "submit", "echo", "{}", "--timeout", "30", **settings)
        assert done.returncode == 1, done.stdout
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in done.stderr
        return line


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    with Lan(hosts=3) as lan:
        yield Ends(lan, tmp_path)


def says(log: Path, text: str, *, times: int = 1) -> None:
    until(lambda: log.read_text("utf-8").count(text) >= times, f"{text!r} in {log}")


def command_in(text: str) -> list[str]:
    """Return the arguments of the `join` that a sentence says to run."""
    return shlex.split(text.partition(" join ")[2].splitlines()[0])[:2]


def test_who_waits_for_approval_is_told_the_command_that_gives_it(ends: Ends) -> None:
    boss, far, user = ends.lan.hosts
    ends.begin(boss, "orchestrator", D8_JOIN="approve")
    log = ends.begin(far, "worker")
    says(log, "has not let in the key")
    told = ends.submit()
    assert "has not let in the key" in told
    for text in (log.read_text("utf-8"), told):
        action, key = command_in(text)
        done = ends.run(boss, "join", action, key)
        assert done.returncode == 0, done.stderr
    says(log, "joined")
    done = ends.run(user, "submit", "echo", "{}", "--wait", "--timeout", "60")
    assert done.returncode == 0, done.stderr
    assert log.read_text("utf-8").count("has not let in the key") == 1

    (worker_id,) = [
        line.split()[1]
        for line in log.read_text("utf-8").splitlines()
        if line.startswith("worker ") and " joined " in line
    ]
    assert ends.run(boss, "join", "revoke", worker_id).returncode == 0
    says(log, "has revoked the key")
    action, key = command_in(log.read_text("utf-8").partition("has revoked the key")[2])
    assert ends.run(boss, "join", action, key).returncode == 0
    says(log, "joined", times=2)


def test_a_worker_that_lost_its_key_file_gets_its_id_back_by_what_it_says(ends: Ends) -> None:
    boss, far, _ = ends.lan.hosts
    ends.begin(boss, "orchestrator")
    until(lambda: ends.health(boss).get("status") == "healthy", "a healthy orchestrator")
    log = ends.begin(far, "worker")
    says(log, "joined")
    (folder,) = (ends.folder_of(far) / "workers").iterdir()
    name = (folder / "id").read_text("utf-8")
    far.kill_all()
    (folder / "curve.key").unlink()
    log = ends.begin(far, "worker")
    says(log, "joined")
    says(log, "--name")
    far.kill_all()
    said = " ".join(log.read_text("utf-8").split())
    action, who = command_in(said)
    assert (action, who) == ("forget", name)
    assert ends.run(boss, "join", action, who).returncode == 0
    asked = shlex.split(said.partition("then start here ")[2])
    at = asked.index("worker")
    log = ends.begin(far, *asked[at : at + 3])
    says(log, f"worker {name} joined")


@pytest.mark.parametrize("closing", [{"D8_JOIN": "approve"}, {"D8_MESH_KEY": KEY}])
def test_a_closed_orchestrator_with_its_own_certificate_tells_members_how_it_stands(
    ends: Ends, closing: dict[str, str]
) -> None:
    boss, _, user = ends.lan.hosts
    log = ends.begin(boss, "orchestrator", D8_TLS="auto", **closing)
    says(log, "certificate:")
    key = {name: closing[name] for name in closing if name == "D8_MESH_KEY"}
    if not key:
        told = ends.run(user, "status")
        assert told.returncode == 1
        assert "has not let in the key" in told.stdout, told.stdout
        action, member = command_in(told.stdout)
        assert ends.run(boss, "join", action, member).returncode == 0
    for command in ("status", "workers"):
        done = ends.run(user, command, "--json", **key)
        assert done.returncode == 0, done.stdout
        assert "error" not in done.stdout


def test_who_has_another_mesh_key_or_none_is_told_so(ends: Ends) -> None:
    boss, far, _ = ends.lan.hosts
    ends.begin(boss, "orchestrator", D8_MESH_KEY=KEY)
    until(lambda: ends.health(boss).get("status") == "healthy", "a healthy orchestrator")
    log = ends.begin(far, "worker", D8_MESH_KEY=ANOTHER)
    says(log, "does not know the D8_MESH_KEY of this machine")
    assert "does not know the D8_MESH_KEY of this machine" in ends.submit(D8_MESH_KEY=ANOTHER)
    far.kill_all()
    log = ends.begin(far, "worker")
    says(log, "an orchestrator refuses this worker")
    assert "D8_MESH_KEY" in log.read_text("utf-8")
    assert "D8_MESH_KEY" in ends.submit()
    for told in (log.read_text("utf-8"), ends.submit()):
        assert KEY not in told


def test_who_knows_another_orchestrator_of_the_mesh_is_told_how_to_trust_this_one(
    ends: Ends,
) -> None:
    boss, _, user = ends.lan.hosts
    ends.begin(boss, "orchestrator")
    until(lambda: ends.health(boss).get("status") == "healthy", "a healthy orchestrator")
    assert ends.run(user, "join", "trust", "a" * 64).returncode == 0
    told = ends.submit()
    assert "nothing is said to it" in told
    action, key = command_in(told)
    looked = ends.run(user, "status")
    assert f"join trust {key}" in looked.stdout + looked.stderr
    done = ends.run(user, "join", action, key)
    assert done.returncode == 0, done.stderr
    assert ends.run(user, "submit", "echo", "{}", "--timeout", "60").returncode == 0
    assert ends.run(user, "status").returncode == 0


def test_a_key_file_that_others_can_read_stops_a_start_with_one_sentence(ends: Ends) -> None:
    boss, far, user = ends.lan.hosts
    for host, argv in (
        (boss, ("orchestrator",)),
        (far, ("worker",)),
        (user, ("submit", "echo", "{}", "--timeout", "5")),
    ):
        folder = ends.folder_of(host)
        room = {boss: "orchestrator", far: "workers/1", user: "client"}[host]
        (folder / room).mkdir(parents=True)
        key = folder / room / "curve.key"
        key.write_text(f"secret {'ab' * 32}\n", "utf-8")
        key.chmod(0o644)
        done = ends.run(host, *argv)
        assert done.returncode == 2, (argv, done.stdout, done.stderr)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "chmod 600" in errors[0]
        assert "ab" * 32 not in done.stdout + done.stderr
        assert key.read_text("utf-8") == f"secret {'ab' * 32}\n"


def test_who_has_lost_its_folder_comes_back_as_somebody_new(ends: Ends) -> None:
    boss, far, _ = ends.lan.hosts
    ends.begin(boss, "orchestrator")
    log = ends.begin(far, "worker")
    says(log, "joined")
    far.kill_all()
    ends.folder_of(far).rename(ends.folder / "lost")
    log = ends.begin(far, "worker")
    says(log, "joined")


def test_a_folder_that_was_copied_makes_two_workers_and_both_say_so(ends: Ends) -> None:
    boss, far, third = ends.lan.hosts
    ends.begin(boss, "orchestrator")
    log = ends.begin(far, "worker")
    says(log, "joined")
    far.kill_all()
    shutil.copytree(ends.folder_of(far), ends.folder_of(third))
    one, other = ends.begin(far, "worker"), ends.begin(third, "worker")
    says(one, "joined")
    says(other, "joined")
    until(
        lambda: "is called" in one.read_text("utf-8") + other.read_text("utf-8"),
        "one of them to go on under another name",
    )
