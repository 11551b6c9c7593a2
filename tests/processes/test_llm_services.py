"""A worker offers what its services have, as long as they answer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from d8mesh.backends.backend import Availability
from d8mesh.backends.services import Service
from d8mesh.config import Config
from d8mesh.edge.network import host_name
from d8mesh.errors import BackendError
from d8mesh.nodes.worker import Worker
from d8mesh.processes.llm_services import LlmServices
from d8mesh.processes.services_console import ServicesConsole
from tests.backends.scripted import (
    DOWN,
    ManagedBackend,
    ScriptedBackend,
    question,
    run_at,
    up,
)

URL = "http://127.0.0.1:7100"


class ClosedBackend(ScriptedBackend):
    """One that keeps files and has something to end."""

    kept: Path | None = None
    is_closed = False

    def keep_in(self, folder: Path) -> None:
        self.kept = folder

    def close(self) -> None:
        self.is_closed = True


class Scene:
    """A worker that was not started, with services."""

    def __init__(self, *backends: ScriptedBackend) -> None:
        self.worker, self.lines = Worker(config=Config()), list[str]()
        self.worker.register("own", lambda data: data)
        self.seen: list[str] = []
        self.services = LlmServices(
            self.worker,
            backends,
            config=Config(first_token_s=9.0, token_gap_s=4.0),
            console=ServicesConsole(self.lines.append),
            on_seen=self.saw,
        )

    def saw(self, service: Service) -> bool:
        self.seen.append(service.backend.url)
        return False

    def look(self) -> None:
        self.services.pool.look()

    def types(self) -> list[str]:
        listed = self.services.report()["task_types"]
        assert isinstance(listed, list)
        return listed

    def windowed(self) -> list[str]:
        """Return the types that come by the worker's slots."""
        return list(self.worker.task_types)


def test_its_own_types_are_offered_at_once_and_those_of_services_when_they_answer() -> None:
    backend = ManagedBackend(URL, DOWN)
    scene = Scene(backend)
    assert scene.windowed() == ["own"]
    scene.look()
    assert scene.services.report()["reason"] is not None
    assert scene.types() == ["own"]
    backend.seen = up("a", embedders=("e",), url=URL)
    scene.look()
    changes = ["model_load", "model_pull", "model_remove", "model_unload"]
    assert scene.windowed() == [*changes, "own"]
    report = scene.services.report()
    assert {"agent_action", "code_generation", "embed", "own"} < set(scene.types())
    assert report["models"] == ["a", "e"]
    assert scene.seen == [URL, URL]
    assert any(line.startswith(f"Ollama at {URL}: ") for line in scene.lines)
    backend.seen = Availability(is_up=False, embedders=("e",), url=URL, reason="no chats")
    scene.look()
    assert "agent_action" not in scene.types()
    assert "embed" in scene.types()


def test_models_can_be_pulled_to_a_service_that_has_none_yet() -> None:
    nothing = Availability(is_up=False, url=URL, reason="it has no models to chat with")
    scene = Scene(ManagedBackend(URL, nothing))
    scene.look()
    assert "model_pull" in scene.windowed()
    assert scene.services.pool.services[0].offered().why == ""
    reason = str(scene.services.report()["reason"])  # no orchestrator: the service is no reason
    assert "no models to chat with" not in reason
    scene = Scene(ManagedBackend(URL, DOWN))
    scene.look()
    assert scene.windowed() == ["own"]
    assert scene.services.pool.services[0].offered().why == "it is off"


def test_a_service_that_manages_no_models_brings_no_such_tasks() -> None:
    scene = Scene(ScriptedBackend(URL, up("a", url=URL)))
    scene.look()
    assert scene.windowed() == ["own"]


def test_the_status_page_names_each_service_and_what_is_wrong(tmp_path: Path) -> None:
    first, second = ScriptedBackend(URL, up("a", url=URL)), ClosedBackend("", DOWN, kind="embedded")
    scene = Scene(first, second)
    scene.look()
    scene.services.keep_in(tmp_path)
    scene.services.close()
    assert (second.kept, second.is_closed) == (tmp_path, True)
    report = scene.services.report()
    backend, services = report["backend"], report["services"]
    assert isinstance(backend, dict)
    assert isinstance(services, list)
    assert (backend["name"], backend["is_up"]) == ("ollama+embedded", True)
    assert backend["reason"] == "embedded: it is off"
    assert [(each["kind"], each["is_up"]) for each in services] == [
        ("ollama", True),
        ("embedded", False),
    ]


def test_a_paused_model_is_told_with_the_place_that_tells_it_from_others() -> None:
    def paused(*urls: str) -> str:
        backends = [ScriptedBackend(url, up("a", url=url)) for url in urls]
        scene = Scene(*backends)
        scene.look()
        backends[0].fails = BackendError("HTTP 500")
        with pytest.raises(BackendError):
            scene.services.pool.services[0].chat(question("a"), run_at())
        return scene.lines[-1]

    assert paused(URL).startswith(f"a at {host_name()} gets no tasks")
    assert paused(URL, "http://127.0.0.1:7101").startswith(f"a at {URL} gets no tasks")


@pytest.mark.timeout(60)
def test_it_looks_until_it_is_stopped() -> None:
    scene, stop = Scene(ScriptedBackend(URL, up("a", url=URL))), threading.Event()
    scene.services.start(stop)
    while not scene.seen:
        stop.wait(0.01)
    stop.set()
    scene.services.pool.wake()
