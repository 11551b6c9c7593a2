"""A rogue orchestrator of the same name on the same bridge: who knows the right one passes it over.

It comes first, second, and while the right one is down. What counts is the connections that reach
it, so that not even the beginning of a handshake goes unseen.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from d8mesh.core.protocol.membership import announced_proof, fingerprint, mesh_secret
from d8mesh.edge.address_file import FOLDER, NAME
from d8mesh.edge.pins import PinFile
from tests.end_to_end.hosts import Host, Lan, available
from tests.end_to_end.processes import until
from tests.end_to_end.test_lan import ROOT, Machines

if reason := available():
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.namespace

KEY: Final = "the-key-of-this-mesh-4711"
#: Of these a worker looks for its orchestrator, once a second at least.
ALONE_S: Final = 6.0
#: What only who has opened the handshake says.
PAST_THE_GREETING: Final = (b"INITIATE", b"MESSAGE")


class RogueHost:
    """The rogue on a host of its own."""

    def __init__(self, host: Host, mesh: str, *options: str) -> None:
        self._process = host.popen(
            [sys.executable, "-m", "tests.security.rogue", mesh, "7010", "7001", *options],
            env={"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
        )
        self.key = bytes.fromhex(self._said()["key"])

    def seen(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._said()

    @property
    def connections(self) -> int:
        return int(self.seen()["connections"])

    @property
    def heard(self) -> list[bytes]:
        return [bytes.fromhex(each) for each in self.seen()["heard"]]

    def _said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told


class Scene(Machines):
    """An orchestrator, a worker and a rogue's machine; the first two keep their folders."""

    settings: dict[str, str]

    def orchestrator(self) -> Path:
        return self._kept(self.lan.hosts[0], "orchestrator")

    def worker(self) -> Path:
        return self._kept(self.lan.hosts[1], "worker")

    def folder_of(self, command: str) -> Path:
        return self.folder / f"kept-{command}"

    def stop(self, host: Host) -> None:
        host.kill_all()

    def _kept(self, host: Host, command: str) -> Path:
        folder = self.folder_of(command)
        folder.mkdir(exist_ok=True)
        return self.start(host, command, D8_DATA_DIR=str(folder), **self.settings)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Lan(hosts=3) as lan:
        made = Scene(lan, tmp_path)
        made.settings = {}
        yield made


def says(log: Path, text: str, *, times: int = 1) -> None:
    until(lambda: log.read_text("utf-8").count(text) >= times, f"{text!r} in {log}")


def work(scene: Scene, text: str) -> None:
    """Have a task run by the worker, asked for on the orchestrator's own machine."""
    data = str(scene.folder_of("orchestrator"))
    url = "http://127.0.0.1:7001"
    boss = scene.lan.hosts[0]
    code = CLIENT.format(url=url, mesh=scene.mesh, data=data, text=text)
    done = boss.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT), **scene.settings})
    assert done.stdout.strip() == text, done.stderr


CLIENT: Final = """
import os
from dataclasses import replace
from d8mesh import Client
from d8mesh.config import Config
config = replace(Config.from_env(os.environ), mesh={mesh!r}, data_dir={data!r})
with Client({url!r}, config=config) as client:
    print(client.call("echo", {{"text": {text!r}}}, timeout=60)["output"]["text"])
"""


def test_34_a_pinned_worker_never_speaks_to_a_rogue_of_the_same_name(scene: Scene) -> None:
    boss, far, third = scene.lan.hosts
    scene.orchestrator()
    log = scene.worker()
    says(log, "joined")
    work(scene, "before")

    rogue = RogueHost(third, scene.mesh)  # second
    told = fingerprint(rogue.key)
    says(log, "is passed over")
    assert f"join trust {told}" in log.read_text("utf-8")
    work(scene, "beside it")
    assert rogue.connections == 0

    scene.stop(boss)  # while the right one is down
    says(log, "lost")
    alone = time.monotonic()
    until(lambda: time.monotonic() - alone > ALONE_S, "so long the worker looked for another")
    assert rogue.connections == 0

    scene.stop(far)
    log = scene.worker()  # first
    says(log, "is passed over")
    assert rogue.connections == 0
    scene.orchestrator()
    says(log, "joined")
    work(scene, "after")
    assert rogue.connections == 0
    assert log.read_text("utf-8").count("is passed over") == 1, "one line, not one for each try"
    (pin,) = PinFile(scene.folder_of("worker")).of(scene.mesh)
    assert pin.key != rogue.key


def test_34_in_key_mode_not_even_an_unpinned_worker_speaks_to_one_without_the_mesh_key(
    scene: Scene,
) -> None:
    scene.settings = {"D8_MESH_KEY": KEY}
    third = scene.lan.hosts[2]
    another = mesh_secret("another mesh key entirely", scene.mesh)
    rogue = RogueHost(third, scene.mesh, "--proof", announced_proof(another, b"k" * 32).hex())
    log = scene.worker()
    says(log, "does not know the D8_MESH_KEY of this machine")
    assert rogue.connections == 0
    scene.orchestrator()
    says(log, "joined")
    work(scene, "in key mode")
    assert rogue.connections == 0


def test_34_who_repeats_all_that_the_right_one_says_hears_nothing_that_matters(
    scene: Scene,
) -> None:
    """With its id, key and proof, which everybody may know, but without its secret key."""
    scene.settings = {"D8_MESH_KEY": KEY}
    boss, _, third = scene.lan.hosts
    scene.orchestrator()
    log = scene.worker()
    says(log, "joined")
    written = scene.folder_of("orchestrator") / FOLDER / NAME
    told = json.loads(written.read_text("utf-8"))
    rogue = RogueHost(
        third, scene.mesh, "--id", told["broker_id"], "--key", told["server_key"],
        "--proof", told["proof"],
    )  # fmt: skip
    work(scene, "beside its double")
    scene.stop(boss)
    until(lambda: rogue.connections > 0, "a try at the double's address")
    scene.orchestrator()
    says(log, "joined", times=2)
    work(scene, "after its double")
    for heard in rogue.heard:
        assert not any(each in heard for each in PAST_THE_GREETING), heard[:400]
        assert KEY.encode() not in heard


def test_34_a_worker_that_knows_nothing_yet_takes_the_first_and_tells_of_the_other(
    scene: Scene,
) -> None:
    """So the rogue of these tests can be found: what they count is worth something."""
    rogue = RogueHost(scene.lan.hosts[2], scene.mesh)
    log = scene.worker()
    until(lambda: rogue.connections > 0, "a connection to the only one there is")
    scene.orchestrator()
    says(log, "joined")
    says(log, "is passed over")
    before = rogue.connections
    work(scene, "the right one")
    assert rogue.connections == before
    for heard in rogue.heard:
        assert not any(each in heard for each in PAST_THE_GREETING), heard[:400]


def test_an_orchestrator_that_was_installed_anew_is_served_after_one_command(
    scene: Scene,
) -> None:
    boss, far, _ = scene.lan.hosts
    scene.orchestrator()
    log = scene.worker()
    says(log, "joined")
    scene.stop(boss)
    new = scene.start(boss, "orchestrator")  # another folder: another key
    says(log, "is passed over")
    (command,) = {
        line.partition("run here: ")[2].split("join trust ")[1].split()[0]
        for line in log.read_text("utf-8").splitlines()
        if "join trust" in line
    }
    says(new, command)  # what the orchestrator prints at its start
    trust = [sys.executable, "-m", "d8mesh", "join", "trust", command]
    env = {"PYTHONPATH": str(ROOT), "D8_MESH": scene.mesh, "D8_NO_ENV_FILE": "1"}
    done = far.run(trust, env={**env, "D8_DATA_DIR": str(scene.folder_of("worker"))})
    assert done.returncode == 0, done.stderr
    says(log, "joined", times=2)


def test_in_key_mode_an_orchestrator_that_was_installed_anew_is_served_by_itself(
    scene: Scene,
) -> None:
    scene.settings = {"D8_MESH_KEY": KEY}
    boss = scene.lan.hosts[0]
    scene.orchestrator()
    log = scene.worker()
    says(log, "joined")
    scene.stop(boss)
    scene.start(boss, "orchestrator", **scene.settings)
    says(log, "joined", times=2)
    assert "is passed over" not in log.read_text("utf-8")
