"""Models of an Ollama are looked at, loaded, pulled and removed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from d8mesh.backends.backend import ModelInfo, PullProgress
from d8mesh.backends.ollama import OllamaBackend, models
from d8mesh.errors import (
    BackendError,
    BackendUnavailableError,
    InvalidTaskError,
    TaskCancelledError,
)
from tests.ollama_standin import OllamaStandin
from tests.standin.faults import Kind

PATIENCE_S = 30.0
CHAT = "qwen2.5:3b"
VECTORS = "nomic-embed-text:latest"


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaStandin]:
    monkeypatch.setattr(models, "PULL_PAUSE_S", 0.01)
    monkeypatch.setattr(models, "PULL_STALL_S", 0.4)
    with OllamaStandin(pull_s=0.0, library=["new:1b"]) as running:
        yield running


def pull(
    standin: OllamaStandin,
    name: str = "new:1b",
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[PullProgress]:
    told: list[PullProgress] = []
    OllamaBackend(standin.url).pull(name, told.append, is_cancelled)
    return told


# --- details ----------------------------------------------------------------------------


def test_a_probe_tells_all_of_each_model(standin: OllamaStandin) -> None:
    backend = OllamaBackend(standin.url)
    backend.load(CHAT, {"num_ctx": 8192}, within_s=PATIENCE_S)
    seen = backend.probe()
    assert seen.version == "0.33.0"
    assert seen.details.keys() == {CHAT, "deepseek-r1:8b", VECTORS}
    info = seen.details[CHAT]
    assert info == ModelInfo(
        name=CHAT,
        digest=info.digest,
        size_bytes=2_000_000_000,
        can=frozenset({"completion", "tools"}),
        is_loaded=True,
        context_length=8192,
        most_context=131_072,
        vram_bytes=2_000_000_000,
        changed_at=info.changed_at,
    )
    assert len(info.digest) == 64
    assert info.changed_at
    assert seen.details[VECTORS].can == {"embedding"}
    assert not seen.details[VECTORS].is_loaded


def test_an_ollama_that_tells_no_capabilities_still_has_embedders() -> None:
    with OllamaStandin(tells_capabilities=False) as old:
        details = OllamaBackend(old.url).probe().details
    assert not details[CHAT].can
    assert details[VECTORS].can == {"embedding"}


# --- checked and loaded -----------------------------------------------------------------


def test_a_check_asks_one_token_of_a_chat_model_and_one_vector_of_an_embedder(
    standin: OllamaStandin,
) -> None:
    backend = OllamaBackend(standin.url)
    details = backend.probe().details
    backend.check(details[CHAT], within_s=PATIENCE_S)
    backend.check(details["deepseek-r1:8b"], within_s=PATIENCE_S)
    backend.check(details[VECTORS], within_s=PATIENCE_S)
    asked = [(path, body) for path, _, body in standin.counters.bodies if path != "/api/show"]
    assert [path for path, _ in asked] == ["/api/chat", "/api/chat", "/api/embed"]
    assert asked[0][1]["options"]["num_predict"] == 1


@pytest.mark.parametrize("kind", [Kind.FAST_FAIL, Kind.CUT, Kind.NO_DONE, Kind.BUSY, Kind.NAN])
def test_a_check_of_a_service_that_fails_fails(standin: OllamaStandin, kind: Kind) -> None:
    backend = OllamaBackend(standin.url)
    details = backend.probe().details
    standin.fault(kind, after=0)
    with pytest.raises(BackendError):
        backend.check(details[VECTORS if kind is Kind.NAN else CHAT], within_s=PATIENCE_S)


@pytest.mark.parametrize("name", [CHAT, VECTORS])
def test_loading_brings_a_model_into_memory_and_asks_nothing(
    standin: OllamaStandin, name: str
) -> None:
    OllamaBackend(standin.url).load(name, {}, within_s=PATIENCE_S)
    assert standin.loaded == [name]
    assert standin.counters.tokens == 0


def test_a_load_that_fails_or_takes_too_long_is_a_failure(standin: OllamaStandin) -> None:
    backend = OllamaBackend(standin.url)
    standin.fault(Kind.LOAD_FAIL)
    with pytest.raises(BackendError, match="unexpectedly stopped"):
        backend.load(CHAT, {}, within_s=PATIENCE_S)
    standin.fault(Kind.SILENT)
    with pytest.raises(BackendError):
        backend.load(CHAT, {}, within_s=0.2)


# --- pulled and removed -----------------------------------------------------------------


def test_a_pull_tells_how_far_it_is_and_the_model_is_there(standin: OllamaStandin) -> None:
    told = pull(standin)
    done = [each.completed_bytes for each in told]
    assert done == sorted(done)
    assert told[-1] == PullProgress("success", 2_000_000_000, 2_000_000_000)
    assert "new:1b" in OllamaBackend(standin.url).probe().models


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.NO_DONE, Kind.ERROR_LINE, Kind.STALL])
def test_a_pull_that_breaks_or_stalls_goes_on(standin: OllamaStandin, kind: Kind) -> None:
    standin.fault(kind, "new:1b", after=4, times=2)
    done = [each.completed_bytes for each in pull(standin)]
    assert done == sorted(done)
    assert done[-1] == 2_000_000_000
    assert standin.counters.requests["/api/pull"] == 3


def test_a_pull_that_never_gets_further_is_given_up(standin: OllamaStandin) -> None:
    standin.fault(Kind.ERROR_LINE, "new:1b", after=3)
    with pytest.raises(BackendError, match="unexpectedly stopped"):
        pull(standin)
    assert standin.counters.requests["/api/pull"] == 1 + models.PULL_TRIES


@pytest.mark.parametrize("name", ["unknown:1b", "../x", "gpt-oss:120b-cloud"])
def test_a_model_that_does_not_exist_is_refused_at_once(standin: OllamaStandin, name: str) -> None:
    with pytest.raises(InvalidTaskError):
        pull(standin, name)
    assert standin.counters.requests["/api/pull"] <= 1


def test_a_pull_can_be_cancelled(standin: OllamaStandin) -> None:
    standin.change(settings={"pull_s": 10})
    is_cancelled = threading.Event()
    threading.Timer(0.2, is_cancelled.set).start()
    with pytest.raises(TaskCancelledError):
        pull(standin, is_cancelled=is_cancelled.is_set)


def test_what_the_listener_of_a_pull_raises_ends_it(standin: OllamaStandin) -> None:
    def refuse(progress: PullProgress) -> None:
        raise InvalidTaskError("the disk is too small")

    with pytest.raises(InvalidTaskError, match="too small"):
        OllamaBackend(standin.url).pull("new:1b", refuse, lambda: False)
    assert standin.counters.requests["/api/pull"] == 1


def test_a_pull_from_a_machine_that_is_off_is_given_up(standin: OllamaStandin) -> None:
    standin.stop()
    with pytest.raises(BackendUnavailableError):
        pull(standin)


def test_a_model_is_removed_once(standin: OllamaStandin) -> None:
    backend = OllamaBackend(standin.url)
    backend.remove(CHAT)
    assert CHAT not in backend.probe().models
    with pytest.raises(InvalidTaskError, match="is not installed"):
        backend.remove(CHAT)
