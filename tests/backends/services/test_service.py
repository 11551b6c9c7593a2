"""One service: what it offers, how it is asked, and how it comes back."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest

from d8mesh.backends.backend import ChatRun, ModelInfo
from d8mesh.backends.services import RequestClocks, Service
from d8mesh.backends.services.service import LEAST_FIRST_TOKEN_S
from d8mesh.core.protocol.chat import ChatRequest, Completion, Ending, Piece, Timing, Usage
from d8mesh.core.protocol.codec import decode_to_broker, encode
from d8mesh.core.protocol.messages import Budget, Placement, Services
from d8mesh.edge.network import machine_id
from d8mesh.errors import BackendError, BackendMemoryError, BackendStalledError, InvalidTaskError
from tests.backends.scripted import DOWN, ScriptedBackend, question, run_at, texts, up
from tests.end_to_end.processes import until

URL = "http://127.0.0.1:7100"


class Scene:
    """A service with a clock, and how often it told of a change."""

    def __init__(self, backend: ScriptedBackend | None = None) -> None:
        self.now, self.changes = 100.0, 0
        self.backend = backend or ScriptedBackend(URL, up("a", "b", embedders=("e",), url=URL))
        self.service = Service(
            self.backend,
            clocks=RequestClocks(first_token_s=7.0, token_gap_s=3.0),
            on_change=self.changed,
            clock=lambda: self.now,
        )
        self.service.look()

    def changed(self, service: Service, model: str | None) -> None:
        assert service.backend is self.backend
        self.changes += 1

    def paused(self, model: str = "a") -> str:
        return self.service.paused(model)

    def fail(self, error: BaseException) -> None:
        self.backend.fails = error
        with pytest.raises(type(error)):
            self.service.chat(question("a"), run_at())
        self.backend.fails = None


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_what_is_told_of_it_is_what_its_probe_says(scene: Scene) -> None:
    told = scene.service.offered()
    assert (told.id, told.kind, told.url) == (f"{machine_id()}:7100", "ollama", URL)
    assert (told.default, told.why, told.is_cloud) == ("a", "", False)
    assert [(each.name, each.digest, each.slots) for each in told.models] == [
        ("a", "sha-a", 1),
        ("b", "sha-b", 1),
        ("e", "sha-e", 1),
    ]


def test_one_that_is_down_offers_nothing_and_says_why(scene: Scene) -> None:
    scene.backend.seen = DOWN
    assert scene.service.look() is True
    assert scene.service.look() is False
    told = scene.service.offered()
    assert (told.why, told.models) == ("it is off", [])
    assert told.id == f"{machine_id()}:7100"
    assert scene.service.next_look_s(10) == 10


def test_what_was_measured_holds_while_it_is_away(scene: Scene) -> None:
    scene.service.chat(question("a"), run_at())
    scene.backend.seen = DOWN
    scene.service.look()
    scene.backend.seen = up("a", url=URL)
    scene.service.look()
    (told,) = scene.service.offered().models
    assert told.requests == 1


def test_a_model_of_other_files_is_measured_anew(scene: Scene) -> None:
    scene.service.chat(question("a"), run_at())
    details = {"a": ModelInfo(name="a", digest="other"), "b": ModelInfo(name="b", digest="sha-b")}
    scene.backend.seen = replace(up("a", "b", url=URL), details=details)
    scene.service.look()
    assert scene.service.offered().models[0].requests == 0


def test_an_answer_says_where_it_ran_and_was_heard_by_the_caller(scene: Scene) -> None:
    pieces: list[Piece] = []
    done = scene.service.chat(question("A:latest"), run_at(on_piece=pieces.append))
    assert [piece.text for piece in pieces] == [URL]
    assert done.origin is not None
    assert (done.origin.service, done.origin.backend) == (scene.service.id, "ollama")
    (told, _, _) = scene.service.offered().models
    assert (told.requests, told.prompt_tokens, told.output_tokens) == (1, 10, 20)
    assert told.output_tokens_per_s == 10
    made = scene.service.embed(texts("e"), run_at())
    assert made.origin == done.origin
    assert scene.service.offered().models[2].requests == 1


def test_what_its_list_and_its_memory_tell_is_offered() -> None:
    now = 100.0
    kept = ModelInfo(
        name="a",
        is_loaded=True,
        context_length=4096,
        most_context=9000,
        kept_until=160.0,
        changed_at="2026-11-29T15:00:00Z",
        details={"family": "llama"},
        vram_bytes=7,
    )
    pinned = replace(kept, name="b", kept_until=math.inf)
    away = replace(kept, name="c", is_loaded=False, context_length=0, vram_bytes=0)
    seen = replace(up("a", "b", "c"), details={each.name: each for each in (kept, pinned, away)})
    service = Service(ScriptedBackend(URL, seen), clock=lambda: now)
    service.look()
    told = service.offered().models
    assert [each.expires_s for each in told] == [60.0, -1.0, 0.0]
    assert [each.context_tokens for each in told] == [4096, 4096, 9000]
    assert [each.vram_bytes for each in told] == [7, 7, 0]
    assert (told[0].modified_at, told[0].details) == (kept.changed_at, {"family": "llama"})


def test_each_request_gets_the_clocks_of_the_settings(scene: Scene) -> None:
    placement = Placement(service=scene.service.id, model="b")
    scene.service.chat(question("a"), run_at(placement=placement))
    (run,) = scene.backend.asked
    assert (run.first_token_s, run.token_gap_s, run.placement) == (7.0, 3.0, placement)
    assert scene.service.offered().models[1].requests == 1


def test_the_first_token_of_a_model_that_is_known_and_loaded_may_not_take_so_long() -> None:
    times = [100.0]

    class Slow(ScriptedBackend):
        def chat(self, request: ChatRequest, run: ChatRun) -> Completion:
            times[0] += 0.5
            return super().chat(request, run)

    backend = Slow(URL, up("a", url=URL))
    clocks = RequestClocks(first_token_s=300.0)
    service = Service(backend, clocks=clocks, clock=lambda: times[0])
    service.look()
    service.chat(question("a"), run_at())  # nothing is known of it
    service.chat(question("a"), run_at())
    long = ChatRequest(messages=({"role": "user", "content": "x" * 4 * 4000},), model="a")
    service.chat(long, run_at())  # it reads a hundred tokens a second
    tools = replace(question("a"), more={"tools": [{}]})
    service.chat(tools, run_at())  # a call comes whole
    waited = [run.first_token_s for run in backend.asked]
    assert waited[:2] == [300.0, LEAST_FIRST_TOKEN_S]
    assert waited[2:] == [300.0, 300.0]
    backend.waits = release = threading.Event()
    busy = threading.Thread(target=lambda: service.chat(question("a"), run_at()), daemon=True)
    busy.start()
    until(lambda: len(backend.asked) == 5, "the request")
    backend.waits = None
    service.chat(question("a"), run_at())  # it may have to wait for the other's slot
    release.set()
    busy.join(30)
    assert backend.asked[5].first_token_s == 300.0


def test_figures_that_change_again_at_once_are_told_together_a_little_later() -> None:
    told: list[int] = []
    backend = ScriptedBackend(URL, up("a", url=URL))

    def hear(service: Service, model: str | None) -> None:
        if model is not None:
            told.append(service.offered().models[0].requests)

    service = Service(backend, on_change=hear, clock=lambda: 100.0)
    service.look()
    service.chat(question("a"), run_at())
    assert told[-1] == 1
    for _ in range(20):
        service.chat(question("a"), run_at())
    until(lambda: told[-1] == 21, "the last figures to be told")
    assert len(told) < 21


def test_a_model_that_failed_is_paused_until_it_answers_a_small_question(scene: Scene) -> None:
    scene.fail(BackendStalledError("no token for 60 s"))
    assert scene.paused() == "no token for 60 s"
    assert scene.paused("b") == ""
    assert scene.service.needs_look.is_set()
    scene.service.look()
    assert scene.backend.checked == []  # not yet
    assert scene.service.next_look_s(10) == pytest.approx(1)
    scene.now += 1
    scene.backend.check_fails = BackendError("still broken")
    scene.service.look()
    assert (scene.paused(), scene.backend.checked) == ("still broken", ["a"])
    scene.backend.check_fails = None
    scene.now += 2
    scene.service.look()
    assert (scene.paused(), scene.backend.checked) == ("", ["a", "a"])


@pytest.mark.parametrize(
    ("error", "paused"),
    [
        (InvalidTaskError("it takes no such question"), ""),  # it speaks: requests will show
        (RuntimeError("a bug"), "RuntimeError: a bug"),
    ],
)
def test_whatever_the_small_question_raises_it_is_over(
    scene: Scene, error: Exception, paused: str
) -> None:
    scene.fail(BackendError("broken"))
    scene.now += 1
    scene.backend.check_fails = error
    scene.service.look()
    assert scene.paused() == paused
    scene.now += 2
    scene.backend.check_fails = None
    scene.service.look()
    assert scene.paused() == ""


def test_what_is_not_in_memory_gets_as_long_as_any_first_token(scene: Scene) -> None:
    scene.service = Service(
        scene.backend, clocks=RequestClocks(first_token_s=300.0), clock=lambda: scene.now
    )
    scene.service.look()
    for seen, within_s in ((scene.backend.seen, 300.0), (up("a", url=URL, loaded=("a",)), 60.0)):
        scene.fail(BackendError("broken"))
        scene.now += 60
        scene.backend.seen = seen
        scene.service.look()
        assert scene.backend.checked_within_s == within_s


def test_a_mistake_of_the_caller_pauses_nothing(scene: Scene) -> None:
    scene.fail(InvalidTaskError("no such format"))
    assert scene.paused() == ""
    assert not scene.service.needs_look.is_set()


def test_a_paused_model_that_is_gone_is_not_asked(scene: Scene) -> None:
    scene.fail(BackendError("broken"))
    scene.now += 5
    scene.backend.seen = up("b", url=URL)
    scene.service.look()
    assert scene.backend.checked == []


def test_a_model_is_loaded_ahead_with_its_options(scene: Scene) -> None:
    placement = Placement(service=scene.service.id, model="a", options={"num_ctx": 4096})
    scene.service.warm(placement)
    assert scene.backend.loaded == [("a", {"num_ctx": 4096})]
    assert scene.service.needs_look.is_set()
    scene.backend.fails = BackendMemoryError("no room for it")
    with pytest.raises(BackendMemoryError):
        scene.service.warm(placement)
    assert scene.paused() == "no room for it"


def test_what_has_answered_is_in_memory_until_a_look_says_otherwise(scene: Scene) -> None:
    def loaded() -> list[str]:
        return [each.name for each in scene.service.offered().models if each.is_loaded]

    assert loaded() == []
    scene.service.chat(question("b"), run_at())
    scene.service.embed(texts("e"), run_at())
    assert loaded() == ["b", "e"]
    scene.service.warm(Placement(service=scene.service.id, model="a"))
    assert loaded() == ["a", "b", "e"]
    scene.service.look()
    assert loaded() == []


def test_nonsense_that_a_service_tells_of_itself_stays_within_what_the_mesh_can_hear() -> None:
    scene = Scene()
    most, nothing = Usage(2**53, 2**53), Timing(prompt_s=1e-9, output_s=1e-9, load_s=9e6)
    scene.backend.ending = Ending(usage=most, timing=nothing)
    for _ in range(3):
        scene.service.chat(question("a"), run_at())
    told = Services(["generate"], [scene.service.offered()], [], [], [])
    assert decode_to_broker(encode(told)) == told


def test_what_answers_in_the_middle_of_a_look_is_in_memory_after_it(scene: Scene) -> None:
    scene.backend.probe_waits, probes = threading.Event(), scene.backend.probes
    look = threading.Thread(target=scene.service.look)
    look.start()
    until(lambda: scene.backend.probes > probes, "the probe")
    scene.now += 1
    scene.service.chat(question("b"), run_at())
    scene.backend.probe_waits.set()
    look.join()
    assert [each.name for each in scene.service.offered().models if each.is_loaded] == ["b"]


def test_one_that_answers_is_there_though_its_lists_come_too_late(scene: Scene) -> None:
    scene.backend.probe_waits, probes = threading.Event(), scene.backend.probes
    scene.backend.seen = DOWN
    look = threading.Thread(target=scene.service.look)
    look.start()
    until(lambda: scene.backend.probes > probes, "the probe")
    scene.now += 1
    scene.service.chat(question("a"), run_at())
    scene.backend.probe_waits.set()
    look.join()
    assert scene.service.offered().why == ""
    scene.now += 1
    scene.service.look()
    assert scene.service.offered().why == "it is off"


class AccountBackend(ScriptedBackend):
    """One that an account stands behind."""

    is_cloud = True
    service_id, slots_hint = "groq-1234", 4

    def budget(self, model: str) -> Budget | None:
        return Budget(minute_requests=30)


def test_an_account_names_the_service_and_bounds_it() -> None:
    scene = Scene(AccountBackend("https://10.9.9.9", up("a"), kind="groq"))
    told = scene.service.offered()
    assert (told.id, told.is_cloud) == ("groq-1234", True)
    assert told.models[0].slots == 4
    assert told.models[0].budget == Budget(minute_requests=30)


def test_the_status_page_has_each_model_with_what_runs_and_what_is_paused(scene: Scene) -> None:
    scene.fail(BackendError("broken"))
    report = scene.service.report()
    assert (report["is_up"], report["why"], report["default_model"]) == (True, None, "a")
    models = report["models"]
    assert isinstance(models, list)
    assert models[0] == {
        "name": "a",
        "is_loaded": False,
        "slots": 1,
        "running": 0,
        "output_tokens_per_s": 0.0,
        "requests": 0,
        "paused": "broken",
    }
