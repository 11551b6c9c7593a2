"""Models pulled and removed: which machines, how far it is, how it ends."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from d8mesh import TaskContext
from d8mesh.apps import model_changes
from d8mesh.apps.model_changes import run_with
from d8mesh.core.protocol.messages import OfferedModel, OfferedService
from d8mesh.errors import (
    BackendUnavailableError,
    ConfigError,
    WaitTimeoutError,
)
from d8mesh.handlers.retrying import Reject
from d8mesh.nodes.client import Client
from d8mesh.options import models as add_arguments
from tests.nodes.mesh import PATIENCE_S, Mesh, mesh_in, until

GB = 10**9


class Machine:
    """A machine of the mesh: a worker with one Ollama of its own, as its handlers behave."""

    def __init__(self, mesh: Mesh, port: int, name: str, *models: str, memory_gb: int = 8) -> None:
        self.name, self.models, self.memory_bytes = name, set(models), memory_gb * GB
        self.refusal = ""
        self.began, self.was_cancelled = threading.Event(), threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()
        self.worker = mesh.worker(port, name=f"w-{name}")
        self.worker.register("model_pull", self.pull)
        self.worker.register("model_remove", self.remove)
        self.offer()
        mesh.run(self.worker)

    def offer(self, *, why: str = "") -> None:
        """Tell of what it has, or why it has nothing now."""
        models = [OfferedModel(name, f"d-{name}", size_bytes=GB) for name in sorted(self.models)]
        where = (f"{self.name}:11434", "ollama", self.name, f"http://{self.name}:11434")
        service = OfferedService(*where, False, 0, "", [] if why else models, why=why)
        self.worker.offer_services(["agent_action"], [service])

    def pull(self, data: Mapping[str, Any], context: TaskContext) -> object:
        told = {"machine": self.name, "service": f"{self.name}:11434", "model": data["model"]}
        if data.get("check"):
            memory = {"memory_bytes": self.memory_bytes, "disk_free_bytes": None}
            fits = data["size_bytes"] <= self.memory_bytes
            return {"success": True, "fits": fits, "why": "" if fits else "too small", **memory}
        if self.refusal:
            raise Reject(self.refusal)
        context.emit({"status": "pulling 6a07", "completed": GB // 2, "total": GB})
        self.began.set()
        while not self.may_end.wait(0.02):
            if context.is_cancelled:
                self.was_cancelled.set()
                context.raise_if_cancelled()
        was_there = f"{data['model']}:latest" in self.models
        self.models.add(data["model"])
        self.offer()
        done = {"output": "pulled", "size_bytes": GB, "was_there": was_there}
        return {"success": True, **done, **told}

    def remove(self, data: Mapping[str, Any], context: TaskContext) -> object:
        was_there = data["model"] in self.models
        self.models.discard(data["model"])
        self.offer()
        return {"success": True, "output": "removed", "was_there": was_there}


class Pool:
    """A mesh with two machines: `pi5` has ``m``, `nas` has more memory."""

    def __init__(self, mesh: Mesh) -> None:
        self.port = mesh.broker()
        self.pi5 = Machine(mesh, self.port, "pi5", "m:latest")
        self.nas = Machine(mesh, self.port, "nas", memory_gb=32)
        self.client: Client = mesh.client(self.port)
        assert self.client.wait_connected(PATIENCE_S)
        until(lambda: len(self.client.models()["services"]) == 2)

    def run(self, *arguments: str, until_s: float | None = None) -> int:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return run_with(self.client, parser.parse_args(arguments), until_s)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with ExitStack() as stack:
        yield Pool(stack.enter_context(mesh_in(tmp_path)))


def test_a_model_is_pulled_where_it_is_said(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    assert pool.run("pull", "new", "--on", "pi5") == 0
    assert ("new" in pool.pi5.models, "new" in pool.nas.models) == (True, False)
    said = capsys.readouterr()
    assert said.out == "pi5: new is installed (1.0 GB)\n"
    assert "pi5: pulling 6a07, 500 MB of 1.0 GB (50 %)" in said.err


def test_without_a_place_it_goes_where_it_fits_best(
    pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pool.run("pull", "m") == 0
    assert "m" in pool.nas.models
    said = capsys.readouterr().err
    assert "m is already on pi5; --on says where else" in said
    assert "on nas: no other has more memory: 32.0 GB" in said


def test_that_a_model_was_there_before_is_said(
    pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pool.run("pull", "m", "--on", "pi5") == 0
    assert capsys.readouterr().out == "pi5: m is installed already\n"


def test_all_machines_get_it_at_once_and_json_says_how_far(
    pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pool.run("pull", "new", "--all", "--json") == 0
    assert "new" in pool.pi5.models & pool.nas.models
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    states = {
        machine: [t["state"] for t in told if t["machine"] == machine] for machine in ("pi5", "nas")
    }
    assert states["pi5"][0] == states["nas"][0] == "submitted"
    assert states["pi5"][-1] == states["nas"][-1] == "completed"
    running = next(each for each in told if each["state"] == "running")
    assert (running["completed"], running["total"], running["model"]) == (GB // 2, GB, "new")


def test_only_machines_with_room_get_it(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    pool.pi5.memory_bytes = GB // 2
    assert pool.run("pull", "m", "--fit") == 0
    assert "m" in pool.nas.models
    said = capsys.readouterr()
    assert "pi5: too small" in said.err
    assert said.out == "nas: m is installed (1.0 GB)\n"


def test_where_nothing_is_known_of_its_size_it_is_put_nowhere(
    pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendUnavailableError, match="no machine is known to have room for new"):
        pool.run("pull", "new", "--fit")
    assert "nas: it is not known how large it is: no machine has it" in capsys.readouterr().err


def test_a_refusal_is_told_and_ends_in_1(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    pool.pi5.refusal = "not enough room on pi5: new takes 4.7 GB, 3.1 GB are free"
    assert pool.run("pull", "new", "--all") == 1
    said = capsys.readouterr()
    assert said.out == "nas: new is installed (1.0 GB)\n"
    assert "error: pi5: not enough room on pi5: new takes 4.7 GB, 3.1 GB are free" in said.err


def test_an_unknown_machine_is_refused_with_those_that_are_there(pool: Pool) -> None:
    with pytest.raises(ConfigError, match="--on pi6: no such machine; there are: nas, pi5"):
        pool.run("pull", "new", "--on", "pi6")


def test_ctrl_c_cancels_the_pull(
    pool: Pool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.pi5.may_end.clear()

    def interrupted(*_: object) -> object:
        assert pool.pi5.began.wait(PATIENCE_S)
        raise KeyboardInterrupt

    monkeypatch.setattr(model_changes, "_next", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.run("pull", "new", "--on", "pi5")
    assert pool.pi5.was_cancelled.wait(PATIENCE_S)
    assert "cancelled on pi5" in capsys.readouterr().err


def test_a_wait_that_is_over_leaves_the_pull_to_go_on(
    pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    pool.pi5.may_end.clear()
    with pytest.raises(WaitTimeoutError):
        pool.run("pull", "new", "--on", "pi5", until_s=0.0)
    said = capsys.readouterr().err
    assert "goes on without you" in said or "if it will be" in said
    pool.pi5.may_end.set()
    until(lambda: "new" in pool.pi5.models)


def test_a_model_is_removed_from_the_only_machine_that_has_it(
    pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pool.run("remove", "m:latest") == 0
    assert pool.pi5.models == set()
    assert capsys.readouterr().out == "pi5: m:latest is removed\n"


def test_nothing_is_removed_from_where_nobody_gets(pool: Pool) -> None:
    pool.pi5.offer(why="it is off")
    until(lambda: pool.client.models()["models"][0]["places"][0]["state"] == "down")
    with pytest.raises(BackendUnavailableError, match="m is on pi5, which cannot be reached now"):
        pool.run("remove", "m")


def test_of_several_machines_it_must_be_said_which(pool: Pool) -> None:
    assert pool.run("pull", "m:latest", "--on", "nas") == 0
    until(lambda: len(pool.client.models()["models"][0]["places"]) == 2)
    with pytest.raises(ConfigError, match="m is on nas, pi5: say which with --on, or --all"):
        pool.run("remove", "m")
    with pytest.raises(BackendUnavailableError, match="no machine has other"):
        pool.run("remove", "other")


def test_removing_everywhere_asks_a_person_first(
    pool: Pool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda: "n")
    assert pool.run("remove", "m:latest", "--all") == 1
    said = capsys.readouterr().err
    assert "remove m:latest from pi5? [y/N]" in said
    assert "nothing was removed" in said
    monkeypatch.setattr("builtins.input", lambda: "Y")
    assert pool.run("remove", "m:latest", "--all") == 0
    assert pool.pi5.models == set()


def test_yes_asks_nothing(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert pool.run("remove", "m:latest", "--all", "--yes") == 0
    assert pool.pi5.models == set()
