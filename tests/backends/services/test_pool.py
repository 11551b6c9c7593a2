"""Several services of one worker: each kept in sight, told of when something changes, and asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from d8mesh.backends.backend import Availability
from d8mesh.backends.services import PoolListener, Service, ServicePool
from d8mesh.backends.services.pool import is_worth_telling, together
from d8mesh.core.protocol.messages import OfferedModel, OfferedService, Placement
from d8mesh.edge.network import machine_id
from d8mesh.errors import BackendError, BackendUnavailableError
from tests.backends.scripted import DOWN, ScriptedBackend, question, run_at, texts, up
from tests.end_to_end.processes import until

PATIENCE_S = 30.0


def url_of(number: int) -> str:
    return f"http://10.9.9.{number}:11434"


class Scene:
    """A pool, and what it tells."""

    def __init__(self, *offers: Availability, kinds: Sequence[str] = ()) -> None:
        self.offers: list[Sequence[OfferedService]] = []
        self.measured: list[tuple[str, Sequence[OfferedModel]]] = []
        self.seen: list[str] = []
        self.is_new = threading.Event()
        self.backends = [
            ScriptedBackend(url_of(i), replace(seen, url=url_of(i) if seen.is_up else ""))
            for i, seen in enumerate(offers)
        ]
        for backend, kind in zip(self.backends, kinds, strict=False):
            backend.kind = kind
        told = PoolListener(offer=self.offer, measured=self.measure, seen=self.saw)
        self.pool = ServicePool(self.backends, told=told)

    def offer(self, services: Sequence[OfferedService]) -> None:
        self.offers.append(services)
        self.is_new.set()

    def measure(self, service: str, models: Sequence[OfferedModel]) -> None:
        self.measured.append((service, models))

    def saw(self, service: Service, before: Availability) -> None:
        self.seen.append(service.backend.url)

    def answer(self, model: str | None) -> str:
        return self.pool.chat(question(model), run_at()).text

    def until(self, count: int) -> None:
        end = time.monotonic() + PATIENCE_S
        while len(self.offers[-1] if self.offers else ()) != count:
            assert time.monotonic() < end
            self.is_new.wait(0.1)


def test_each_service_is_told_once_and_again_only_when_it_changes() -> None:
    scene = Scene(up("a"), up("a", "b"))
    scene.pool.look()
    assert [each.id for each in scene.offers[-1]] == ["10.9.9.0:11434", "10.9.9.1:11434"]
    assert sorted(scene.seen) == [url_of(0), url_of(1)]
    count = len(scene.offers)
    scene.pool.look()
    assert len(scene.offers) == count
    scene.backends[0].seen = DOWN
    scene.pool.look()
    assert [each.why for each in scene.offers[-1]] == ["it is off", ""]


def test_a_model_that_is_loaded_is_a_measurement_and_no_new_offer() -> None:
    scene = Scene(up("a", "b"))
    scene.pool.look()
    count = len(scene.offers)
    scene.backends[0].seen = replace(scene.backends[0].seen, loaded=("b",))
    scene.pool.look()
    assert len(scene.offers) == count
    ((service, models),) = scene.measured
    assert (service, [(each.name, each.is_loaded) for each in models]) == (
        "10.9.9.0:11434",
        [("b", True)],
    )


@pytest.mark.parametrize(
    ("changes", "is_told"),
    [
        ({"requests": 105, "output_tokens_per_s": 38.1}, False),
        ({"requests": 106}, True),
        ({"output_tokens_per_s": 37.9}, True),
        ({"load_s": 0.1}, True),
        ({"slots": 2}, True),
        ({"paused": "HTTP 500"}, True),
        ({"is_loaded": True}, True),
    ],
)
def test_figures_are_told_when_they_have_changed_by_more_than_a_twentieth(
    changes: dict[str, Any], is_told: bool
) -> None:
    before = OfferedModel(name="m", requests=100, output_tokens_per_s=40.0)
    assert is_worth_telling(before, structs.replace(before, **changes)) is is_told


@pytest.mark.parametrize(
    ("before_s", "now_s", "is_told"),
    [
        (900.0, 890.0, False),
        (900.0, 885.0, False),
        (900.0, 905.0, True),
        (900.0, 60.0, True),
        (0.0, 0.0, False),
        (0.0, 900.0, True),
        (900.0, 0.0, True),
        (-1.0, -1.0, False),
        (-1.0, 900.0, True),
    ],
)
def test_how_long_a_model_stays_is_told_when_it_changes_and_not_as_time_passes(
    before_s: float, now_s: float, is_told: bool
) -> None:
    before, now = OfferedModel("m", expires_s=before_s), OfferedModel("m", expires_s=now_s)
    assert is_worth_telling(before, now, 10.0) is is_told


def test_a_failure_is_told_before_the_caller_hears_of_it() -> None:
    scene = Scene(up("a"))
    scene.pool.look()
    scene.backends[0].fails = BackendError("HTTP 500")
    with pytest.raises(BackendError):
        scene.answer("a")
    assert scene.measured[-1][1][0].paused == "HTTP 500"


def test_a_service_that_hangs_delays_no_other() -> None:
    scene, stop = Scene(up("a"), up("b")), threading.Event()
    hanging = threading.Event()
    scene.backends[0].probe_waits = hanging
    scene.pool.start(stop)
    try:
        scene.until(1)
        assert scene.offers[-1][0].url == url_of(1)
        hanging.set()
        scene.until(2)
        more = ScriptedBackend(url_of(7), up("c", url=url_of(7)))
        added = scene.pool.add(more)
        scene.until(3)
        assert added is not None
        scene.pool.drop(added)
        scene.until(2)
    finally:
        hanging.set()
        stop.set()
        scene.pool.wake()


def test_a_model_that_hangs_while_it_is_asked_delays_no_look() -> None:
    scene, stop = Scene(up("a", "b")), threading.Event()
    (backend,) = scene.backends
    backend.check_waits = threading.Event()
    scene.pool.start(stop)
    try:
        scene.until(1)
        backend.fails = BackendError("it broke")
        with pytest.raises(BackendError):
            scene.answer("a")
        until(lambda: backend.checked == ["a"], "the model to be asked")
        backend.seen = replace(up("a", "b", "c"), url=backend.url)
        scene.pool.wake()
        until(lambda: len(scene.offers[-1][0].models) == 3, "the new model to be offered")
        assert backend.checked == ["a"]
        backend.check_waits.set()
        until(lambda: not scene.measured[-1][1][0].paused, "the model to be trusted again")
    finally:
        backend.check_waits.set()
        stop.set()
        scene.pool.wake()


def test_a_probe_that_raises_is_not_the_last() -> None:
    scene, stop = Scene(up("a")), threading.Event()
    (backend,) = scene.backends
    backend.probe_fails = RuntimeError("a bug")
    scene.pool.start(stop)
    try:
        until(lambda: backend.probes > 0, "a first look")
        backend.probe_fails = None
        scene.pool.wake()
        scene.until(1)
    finally:
        stop.set()
        scene.pool.wake()


def test_a_placement_says_where_it_runs() -> None:
    scene = Scene(up("a"), up("a"))
    scene.pool.look()
    for number in (1, 0):
        placement = Placement(service=f"10.9.9.{number}:11434", model="a")
        assert scene.pool.chat(question(), run_at(placement=placement)).text == url_of(number)
        assert scene.pool.embed(texts("a"), run_at(placement=placement)).origin is not None
    scene.pool.warm(Placement(service="10.9.9.1:11434", model="a"))
    assert scene.backends[1].loaded == [("a", {})]
    with pytest.raises(BackendUnavailableError, match=r"gone:1 is not reached from here.*10\.9\.9"):
        scene.pool.chat(question(), run_at(placement=Placement(service="gone:1", model="a")))


@pytest.mark.parametrize(
    ("model", "number"), [("b", 1), ("B:latest", 1), ("a", 0), (None, 0), ("c", 0)]
)
def test_without_a_placement_it_goes_to_who_has_the_model(model: str | None, number: int) -> None:
    scene = Scene(up("a"), up("a", "b"))
    assert scene.answer(model) == url_of(number)
    made = scene.pool.embed(texts("b"), run_at())
    assert made.origin is not None
    assert made.origin.service == "10.9.9.1:11434"


def test_without_a_placement_the_first_model_that_is_there_answers() -> None:
    scene = Scene(up("a"), up("c", "b"))
    asked = replace(question("x"), fallbacks=("b", "a"), is_model_strict=True)
    assert scene.pool.chat(asked, run_at()).text == url_of(1)
    told = {each.name: each.requests for each in scene.pool.services[1].offered().models}
    assert told == {"c": 0, "b": 1}


def test_without_a_placement_the_freest_is_asked() -> None:
    scene = Scene(up("a"), up("a"))
    scene.pool.look()
    scene.backends[0].waits = threading.Event()
    first = threading.Thread(target=scene.answer, args=("a",))
    first.start()
    end = time.monotonic() + PATIENCE_S
    while not scene.backends[0].asked:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert scene.answer("a") == url_of(1)
    scene.backends[0].waits.set()
    first.join(PATIENCE_S)


def test_who_failed_is_passed_over_and_when_all_have_it_is_said_why() -> None:
    scene = Scene(up("a"), up("a"))
    scene.pool.look()
    for backend in scene.backends:
        backend.fails = BackendError(f"{backend.url} broke")
        with pytest.raises(BackendError, match="broke"):
            scene.answer("a")
    with pytest.raises(BackendUnavailableError, match=r"paused until a probe.*0:11434 broke"):
        scene.answer("a")


def test_the_makeshift_answers_only_what_nobody_else_can() -> None:
    scene = Scene(up("tiny"), up("big"), kinds=("embedded", "ollama"))
    scene.pool.look()
    assert (scene.answer(None), scene.answer("tiny")) == (url_of(1), url_of(0))
    scene.backends[1].seen = DOWN
    scene.pool.look()
    assert scene.answer(None) == url_of(0)


def test_nobody_there_is_said_with_every_reason() -> None:
    with pytest.raises(BackendUnavailableError, match="it is off"):
        Scene(DOWN, DOWN).answer(None)
    with pytest.raises(BackendUnavailableError, match="no LLM service is configured"):
        Scene().answer(None)


def test_two_ways_to_one_service_are_told_as_one() -> None:
    twice = [ScriptedBackend(url_of(1), up(name, url=url_of(1))) for name in ("a", "b")]
    offers: list[Sequence[OfferedService]] = []
    ServicePool(twice, told=PoolListener(offer=offers.append)).look()
    assert [len(each) for each in offers] == [1] * len(offers)


def test_one_of_two_ways_that_goes_says_nothing_of_the_service_that_stays() -> None:
    scene = Scene(up("a"), up("a"))
    scene.backends[1].url = url_of(0)
    scene.backends[1].seen = scene.backends[0].seen
    scene.pool.look()
    scene.answer("a")
    count = len(scene.measured)
    scene.pool.drop(scene.pool.services[1])
    assert len(scene.measured) == count
    assert [each.id for each in scene.offers[-1]] == ["10.9.9.0:11434"]


def test_together_they_offer_each_model_once_and_warn_of_who_is_down() -> None:
    scene = Scene(DOWN, up("a", "b"), up("b", "c", embedders=("e",)))
    scene.pool.look()
    seen = scene.pool.together()
    assert (seen.is_up, seen.default, seen.models) == (True, "a", ("a", "b", "c"))
    assert (seen.embedders, seen.warning) == (("e",), "ollama: it is off")
    assert seen.url == f"{url_of(1)}, {url_of(2)}"
    both = Scene(DOWN, DOWN)
    both.pool.look()
    down = both.pool.together()
    assert (down.is_up, down.reason) == (False, "ollama: it is off; ollama: it is off")
    assert together(()).reason == "no LLM service is configured here"


def test_the_id_of_a_service_on_this_machine_is_the_machines() -> None:
    url = "http://localhost:7100"
    pool = ServicePool([ScriptedBackend(url, up("a", url=url))])
    pool.look()
    assert pool.named(f"{machine_id()}:7100") is pool.services[0]
    assert [each["id"] for each in pool.report()] == [f"{machine_id()}:7100"]
