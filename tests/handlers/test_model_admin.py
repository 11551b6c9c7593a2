"""Tasks that pull and remove models at a service of the worker's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from d8mesh.backends.backend import PullProgress
from d8mesh.backends.ollama import OllamaBackend
from d8mesh.backends.services import ServicePool
from d8mesh.core.protocol.messages import Placement
from d8mesh.edge.network import host_name, machine_id
from d8mesh.errors import BackendUnavailableError, TaskCancelledError
from d8mesh.handlers.model_admin import LOAD, PULL, REMOVE, UNLOAD, admin_handlers
from d8mesh.handlers.retrying import Reject
from tests.backends.scripted import DOWN, ManagedBackend, ScriptedBackend, up
from tests.ollama_standin import OllamaStandin
from tests.task_context import Context

HERE, THERE = "http://127.0.0.1:7100", "http://10.9.9.9:11434"


class Scene:
    """A worker that reaches an Ollama of its own and another machine's."""

    def __init__(self) -> None:
        self.here = ManagedBackend(HERE, up("a", url=HERE))
        self.there = ManagedBackend(THERE, up("b", url=THERE))
        self.pool = ServicePool([ScriptedBackend("", up("tiny"), kind="embedded"), self.here])
        self.pool.add(self.there)
        self.stop = threading.Event()
        self.pool.look()
        self.pool.start(self.stop)  # so that changes are seen
        self.handlers = admin_handlers(self.pool)

    def run(self, kind: str, context: Context | None = None, **data: object) -> dict[str, Any]:
        result = self.handlers[kind](data, context or Context())
        assert isinstance(result, dict)
        return result


@pytest.fixture
def scene() -> Any:
    made = Scene()
    yield made
    made.stop.set()
    made.pool.wake()


def test_a_model_is_pulled_with_progress_at_this_machine(scene: Scene) -> None:
    context = Context()
    result = scene.run(PULL, context, model="new:1b")
    assert result == {
        "success": True,
        "output": "pulled",
        "model": "new:1b",
        "service": f"{machine_id()}:7100",
        "machine": host_name(),
        "backend": "ollama",
        "size_bytes": 0,
        "was_there": False,
    }
    assert context.emitted[-1] == {"status": "success", "completed": 1000, "total": 1000}
    assert scene.run(PULL, model="new:1b")["was_there"] is True


@pytest.mark.parametrize("where", ["10.9.9.9:11434", "10.9.9.9"])
def test_another_machine_is_named_by_its_service_or_its_name(scene: Scene, where: str) -> None:
    assert scene.run(PULL, model="new:1b", machine=where)["service"] == "10.9.9.9:11434"
    assert "new:1b" in scene.there.seen.models
    removed = scene.run(REMOVE, model="new:1b", machine=where)
    assert (removed["output"], removed["was_there"], removed["freed_bytes"]) == ("removed", True, 0)
    assert scene.run(REMOVE, model="new:1b", machine=where)["was_there"] is False


def test_what_is_not_offered_can_be_removed_too(scene: Scene) -> None:
    scene.here.seen = up("a", url=scene.here.url, unfit={"draws:latest": "cannot chat"})
    scene.pool.look()
    removed = scene.run(REMOVE, model="draws")
    assert (removed["model"], removed["was_there"]) == ("draws:latest", True)


def test_a_placement_goes_before_what_the_data_says(scene: Scene) -> None:
    context = Context()
    context.placement = Placement(service="10.9.9.9:11434", model="new:1b")
    assert scene.run(PULL, context, model="new:1b", machine=host_name())["machine"] == "10.9.9.9"


def test_what_can_never_be_done_is_refused(scene: Scene) -> None:
    with pytest.raises(Reject, match="expected the name of a model"):
        scene.run(PULL, model="../etc")
    with pytest.raises(Reject, match=r"no service nowhere to change models of.*10\.9\.9\.9"):
        scene.run(PULL, model="a", machine="nowhere")
    scene.here.steps = (PullProgress("pulling abc", 0, 10**18),)
    with pytest.raises(Reject, match=rf"not enough room on {host_name()}: new:1b takes"):
        scene.run(PULL, model="new:1b")


def test_a_service_that_is_down_is_no_refusal(scene: Scene) -> None:
    scene.here.seen = DOWN
    scene.pool.look()
    with pytest.raises(BackendUnavailableError, match="it is off"):
        scene.run(PULL, model="new:1b")


def test_a_cancelled_pull_ends(scene: Scene) -> None:
    context = Context()
    context.cancel()
    with pytest.raises(TaskCancelledError):
        scene.run(PULL, context, model="new:1b")


def test_whether_a_model_fits_is_said_without_pulling_it(scene: Scene) -> None:
    fit = scene.run(PULL, model="new:1b", check=True, size_bytes=1)
    assert (fit["fits"], fit["why"], fit["size_bytes"]) == (True, "", 1)
    assert fit["disk_free_bytes"] > 0
    too_large = scene.run(PULL, model="new:1b", check=True, size_bytes=10**18)
    assert too_large["fits"] is False
    assert "of disk are free" in too_large["why"]
    elsewhere = scene.run(PULL, model="new:1b", machine="10.9.9.9", check=True, size_bytes=10**18)
    assert (elsewhere["fits"], elsewhere["disk_free_bytes"], elsewhere["memory_bytes"]) == (
        True,
        None,
        None,
    )
    assert scene.here.seen.models == ("a",)


# --- in memory --------------------------------------------------------------------------


@pytest.fixture
def ollama() -> Iterator[tuple[OllamaStandin, ServicePool]]:
    stop = threading.Event()
    with OllamaStandin() as standin:
        pool = ServicePool([OllamaBackend(standin.url)])
        pool.look()
        pool.start(stop)
        yield standin, pool
        stop.set()
        pool.wake()
        for thread in threading.enumerate():  # none shall come while the stand-in ends
            if thread.name == "probe":
                thread.join(30)


@pytest.mark.parametrize("model", ["qwen2.5:3b", "nomic-embed-text"])
def test_a_model_is_loaded_for_as_long_as_wished_and_let_go_of(
    ollama: tuple[OllamaStandin, ServicePool], model: str
) -> None:
    standin, pool = ollama
    (service,) = pool.services
    handlers = admin_handlers(pool)
    asked = {"model": model, "machine": service.id}
    loaded: Any = handlers[LOAD](asked | {"keep_alive": "2h"}, Context())
    (resident,) = standin.ollama.machine.residents
    assert (loaded["output"], loaded["model"]) == ("loaded", resident.name)
    assert (loaded["service"], loaded["backend"]) == (service.id, "ollama")
    assert resident.keep_alive_s == 7200
    assert service.is_loaded(resident.name)
    gone: Any = handlers[UNLOAD](asked, Context())
    assert (gone["output"], gone["model"]) == ("unloaded", resident.name)
    assert standin.loaded == []
    assert not service.is_loaded(resident.name)


def test_what_is_not_there_or_cannot_let_go_is_refused(
    ollama: tuple[OllamaStandin, ServicePool], scene: Scene
) -> None:
    _, pool = ollama
    with pytest.raises(Reject, match=r"'other' is not at .*, but .*qwen2"):
        admin_handlers(pool)[LOAD]({"model": "other"}, Context())
    with pytest.raises(Reject, match="keep_alive: expected"):
        admin_handlers(pool)[LOAD]({"model": "qwen2.5:3b", "keep_alive": "x"}, Context())
    with pytest.raises(Reject, match="cannot be told to let go"):
        scene.run(UNLOAD, model="a")
