"""The configured default model is pulled where this machine's Ollama lacks it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from d8mesh.backends.backend import PullProgress
from d8mesh.backends.services import Service
from d8mesh.errors import BackendError, BackendUnavailableError
from d8mesh.processes.model_fetch import ModelFetch
from tests.backends.scripted import DOWN, ManagedBackend, up
from tests.end_to_end.processes import until

HERE, THERE = "http://127.0.0.1:7100", "http://10.9.9.9:7100"


class Scene:
    """An Ollama, and who pulls the model `new:1b` there."""

    def __init__(self, url: str = HERE, model: str | None = "new:1b") -> None:
        self.lines: list[str] = []
        self.backend = ManagedBackend(url, up("a", url=url))
        self.service = Service(self.backend)
        self.fetch = ModelFetch(model, tell=self.lines.append)

    def look(self) -> None:
        self.service.look()
        self.fetch.seen(self.service)

    def pulled(self) -> list[str]:
        self.look()
        self.fetch.close(30)
        return self.lines


def test_a_missing_model_is_pulled_and_both_ends_are_said() -> None:
    scene = Scene()
    scene.look()
    until(lambda: len(scene.lines) == 2, "the pull")
    assert scene.lines == [
        "DEEPSEEK_MODEL=new:1b is not installed: pulling it",
        "new:1b is installed",
    ]
    scene.look()
    assert len(scene.lines) == 2
    assert scene.service.has("new:1b")


def test_nothing_is_pulled_that_is_there_or_not_ours_to_pull() -> None:
    assert Scene(model="a:latest").pulled() == []
    assert Scene(model=None).pulled() == []
    assert Scene(url=THERE).pulled() == []
    unfit = Scene(model="Draws")
    unfit.backend.seen = up("a", url=HERE, unfit={"draws:latest": "cannot chat"})
    assert unfit.pulled() == []
    down = Scene()
    down.backend.seen = DOWN
    assert down.pulled() == []


def test_an_ollama_without_any_model_gets_one() -> None:
    scene = Scene()
    scene.backend.seen = up(url=HERE)
    scene.look()
    until(lambda: "new:1b is installed" in scene.lines, "the pull")


def test_a_disk_that_is_too_small_is_said_once() -> None:
    scene = Scene()
    scene.backend.steps = (PullProgress("pulling abc", 0, 10**18),)
    scene.look()
    until(lambda: len(scene.lines) == 2, "the refusal")
    assert "new:1b could not be pulled: not enough room on " in scene.lines[1]
    scene.look()
    assert len(scene.lines) == 2


class FlakyBackend(ManagedBackend):
    """One whose first pulls fail."""

    tries, failing = 0, 1
    why: BackendError = BackendUnavailableError("it went away")

    def pull(
        self,
        name: str,
        on_progress: Callable[[PullProgress], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        self.tries += 1
        if self.tries <= self.failing:
            raise self.why
        super().pull(name, on_progress, is_cancelled)


def test_one_that_went_away_is_tried_again_when_it_is_back() -> None:
    scene = Scene()
    scene.backend = FlakyBackend(HERE, up("a", url=HERE))
    scene.service = Service(scene.backend)
    scene.look()
    until(lambda: len(scene.lines) == 2, "the failure")

    def is_there() -> bool:
        scene.look()
        return scene.service.has("new:1b") is not None

    until(is_there, "the second try")


def test_a_pull_before_the_network_is_up_is_tried_again_and_said_once() -> None:
    scene = Scene()
    scene.backend = backend = FlakyBackend(HERE, up("a", url=HERE))
    backend.failing, backend.why = 4, BackendError("lookup registry: no such host")
    scene.service = Service(scene.backend)
    scene.fetch = ModelFetch("new:1b", tell=scene.lines.append, again_s=0.01)
    scene.look()  # once: nothing changes at the service itself
    until(lambda: len(scene.lines) == 3, "the fifth try")
    assert backend.tries == 5
    assert scene.lines[1].startswith("new:1b could not be pulled: lookup registry: no such host; ")
    assert scene.lines[2] == "new:1b is installed"


def test_a_worker_that_ends_does_not_wait_for_another_try() -> None:
    scene = Scene()
    scene.backend = FlakyBackend(HERE, up("a", url=HERE))
    scene.service = Service(scene.backend)
    scene.look()
    until(lambda: len(scene.lines) == 2, "the failure")
    scene.fetch.close(30)
    assert not any(each.name == "pull" for each in threading.enumerate())


def test_a_worker_that_ends_stops_pulling() -> None:
    scene = Scene()
    scene.backend.waits = threading.Event()
    scene.look()
    scene.fetch.close(0.01)
    scene.backend.waits.set()
    other = Scene()
    other.fetch.close(0)
    other.look()
    assert other.lines == []
