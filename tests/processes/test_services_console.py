"""What a worker's console says of its LLM services: each thing once, when it happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from d8mesh import words
from d8mesh.backends.backend import Availability
from d8mesh.backends.services import Service
from d8mesh.core.protocol.messages import OfferedModel
from d8mesh.processes.services_console import ServicesConsole
from tests.backends.scripted import DOWN, ScriptedBackend, question, run_at, up
from tests.end_to_end.processes import until

TYPES = ("agent_action", "code_generation")
URL = "http://here:7100"
ONE_EACH = "  1 at once with each model, more if it proves to answer more"


class Scene:
    """Services whose offers are set by hand, and what is said of them."""

    def __init__(self, *kinds: str) -> None:
        self.lines: list[str] = []
        self.console = ServicesConsole(self.lines.append)
        self.services = [Service(ScriptedBackend(URL, DOWN, kind=kind)) for kind in kinds]

    def said(self, seen: Availability, number: int = 0) -> list[str]:
        self.lines.clear()
        service = self.services[number]
        before, service.seen, service.is_asked = service.seen, seen, True
        self.console.changed(service, before, self.services, types=TYPES)
        return list(self.lines)

    def heard(self, paused: str = "") -> list[str]:
        self.lines.clear()
        models = [OfferedModel(name="m:1b", paused=paused), OfferedModel(name="n")]
        self.console.heard("id", "pi", models)
        return list(self.lines)


def test_what_a_service_offers_is_told_at_the_start_and_when_it_changes() -> None:
    scene = Scene("ollama")
    down = Availability(is_up=False, reason="Ollama does not answer")
    (line,) = scene.said(down)
    assert line.startswith("no language model here, so agent_action and code_generation are not")
    assert line.endswith("offered: Ollama does not answer")
    assert scene.said(down) == []
    there = up(
        "b",
        "a",
        url=URL,
        embedders=("nomic-embed-text",),
        unfit={"nomic-embed-text": "makes embeddings: it cannot chat", "draws": "cannot chat"},
        warning="DEEPSEEK_MODEL=c is not installed",
    )
    assert scene.said(there) == [
        f"Ollama at {URL}: agent_action and code_generation with b; others: a",
        ONE_EACH,
        "  embed with nomic-embed-text",
        "  draws is not offered: it cannot chat",
        "note: DEEPSEEK_MODEL=c is not installed",
    ]
    assert scene.said(there) == []
    assert len(scene.said(down)) == 1
    assert scene.said(there)[0].startswith("back: Ollama at ")


def test_the_first_line_says_what_is_taken_and_where_services_are_looked_for() -> None:
    scene = Scene("ollama", "ollama")
    scene.console.begin([], types=TYPES)
    assert scene.lines == []
    scene.console.begin(scene.services, types=TYPES)
    (line,) = scene.lines
    assert line == (
        "beside these, as many at once as its LLM services answer: agent_action, code_generation; "
        f"looking for Ollama at {URL}"
    )


def test_models_that_answer_different_numbers_at_once_are_told_apart() -> None:
    scene, there = Scene("ollama"), up("a", "b", url=URL)
    service, backend = scene.services[0], ScriptedBackend(URL, there)
    service.backend = backend
    service.look()
    backend.waits = threading.Event()
    running = threading.Thread(target=service.chat, args=(question("b"), run_at()))
    running.start()
    until(lambda: service.offered().models[1].slots == 2, "one more to try")
    scene.console.changed(service, DOWN, scene.services, types=TYPES)
    backend.waits.set()
    running.join(30)
    assert scene.lines[1] == "  at once 1 with a, 2 with b, more if it proves to answer more"


def test_one_of_several_that_is_down_is_a_note_once_all_were_asked() -> None:
    scene = Scene("ollama", "embedded")
    assert scene.said(DOWN) == []  # the other one may have a model
    assert scene.said(up("tiny"), 1) == [
        "llama.cpp in this worker: agent_action and code_generation with tiny",
        ONE_EACH,
        "note: it is off",
    ]
    assert scene.said(DOWN) == []
    assert scene.said(Availability(is_up=False, reason="it broke")) == ["note: it broke"]
    assert len(scene.said(up("a", url=URL))) == 2
    assert scene.said(DOWN) == ["note: it is off"]
    (line,) = scene.said(Availability(is_up=False, reason="no room"), 1)
    assert line.endswith("are not offered: it is off; no room")


def test_what_is_being_mended_is_no_warning() -> None:
    scene, seen = Scene("ollama"), up("a", url=URL, warning="new:1b is not installed")
    service = scene.services[0]
    before, service.seen, service.is_asked = service.seen, seen, True
    scene.console.changed(
        service, before, scene.services, types=("one", "two", "three"), is_being_mended=True
    )
    assert scene.lines == [f"Ollama at {URL}: one, two and three with a", ONE_EACH]


def test_many_models_are_counted() -> None:
    line, _ = Scene("ollama").said(up(*(f"m{number}" for number in range(12)), url=URL))
    assert line.endswith("with m0; others: m1, m2, m3, m4, m5, m6, m7, m8 and 3 more")


def test_a_pause_and_its_end_are_told_once() -> None:
    scene = Scene("ollama")
    assert scene.heard() == []
    assert scene.heard(paused="it sent no token for 60 s") == [
        "m:1b at pi gets no tasks until it answers a probe: it sent no token for 60 s"
    ]
    assert scene.heard(paused="again") == []
    assert scene.heard() == ["m:1b at pi answers again"]


@pytest.fixture
def _spanish() -> Iterator[None]:
    words.use("es")
    yield
    words.use("en")


@pytest.mark.usefixtures("_spanish")
def test_it_speaks_spanish() -> None:
    scene = Scene("embedded")
    assert scene.said(up("tiny")) == [
        "llama.cpp en este worker: agent_action y code_generation con tiny",
        "  1 a la vez con cada modelo; más si se ve que contesta más",
    ]
    assert scene.heard(paused="x") == [
        "m:1b en pi no recibe tareas hasta que conteste a una prueba: x"
    ]
