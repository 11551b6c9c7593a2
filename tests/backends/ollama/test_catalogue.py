"""Which of the installed models can chat, and stay in this network."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from d8mesh.backends.ollama.catalogue import (
    CANNOT_CHAT,
    IS_CLOUD,
    IS_EMBEDDING,
    MAX_CAPABILITIES,
    Catalogue,
    Shown,
    kept_until_of,
    why_not,
)
from d8mesh.backends.ollama.descriptions import MAX_TOLD_CHARS
from d8mesh.errors import BackendAnswerError
from tests.http.served import served
from tests.ollama_server import OllamaServer

PATIENCE_S = 10.0
MODELS = ("nomic-embed-text:latest", "gpt-oss:120b-cloud", "mine:latest", "llama3:8b")


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer(models=MODELS) as running:
        running.remote_hosts["mine:latest"] = "https://ollama.com:443"
        yield running


def test_embedding_and_cloud_models_are_no_offer(server: OllamaServer) -> None:
    found = Catalogue().read(server.url, within_s=PATIENCE_S)
    assert found.models == ("llama3:8b",)
    assert found.unfit == {
        "nomic-embed-text:latest": IS_EMBEDDING,
        "gpt-oss:120b-cloud": IS_CLOUD,
        "mine:latest": IS_CLOUD,
    }


def test_an_ollama_that_tells_no_capabilities_is_judged_by_family_and_name(
    server: OllamaServer,
) -> None:
    server.capabilities = None
    server.models = (*MODELS, "strange:1b", "hf.co/x/bge-large:latest")
    server.families = {"strange:1b": "nomic-bert"}
    found = Catalogue().read(server.url, within_s=PATIENCE_S)
    assert found.models == ("llama3:8b",)


def test_what_a_model_can_do_is_asked_once(server: OllamaServer) -> None:
    catalogue = Catalogue()
    for _ in range(3):
        catalogue.read(server.url, within_s=PATIENCE_S)
    asked = [body["model"] for path, _, body in server.requests if path == "/api/show"]
    assert sorted(asked) == ["gpt-oss:120b-cloud", "llama3:8b", "nomic-embed-text:latest"]


def test_an_ollama_that_tells_nothing_is_asked_again_when_it_comes_back(
    server: OllamaServer,
) -> None:
    server.capabilities, server.models = None, ("old:1b",)
    catalogue = Catalogue()
    for _ in range(3):
        assert not catalogue.read(server.url, within_s=PATIENCE_S).capabilities["old:1b"]
    assert [path for path, _, _ in server.requests].count("/api/show") == 1
    server.probe_behaviour = "error"
    with pytest.raises(BackendAnswerError):
        catalogue.read(server.url, within_s=PATIENCE_S)
    server.probe_behaviour, server.capabilities = "ok", {"old:1b": ["completion", "vision"]}
    found = catalogue.read(server.url, within_s=PATIENCE_S)
    assert found.capabilities["old:1b"] == {"completion", "vision"}


def test_what_it_says_a_model_can_do_is_bounded(server: OllamaServer) -> None:
    told = ["completion", "", "x" * 500, *(f"skill-{number}" for number in range(100))]
    server.models, server.capabilities = ("odd:1b",), {"odd:1b": told}
    can = Catalogue().read(server.url, within_s=PATIENCE_S).details["odd:1b"].can
    assert "completion" in can
    assert len(can) <= MAX_CAPABILITIES
    assert all(0 < len(each) <= MAX_TOLD_CHARS for each in can)


def test_a_door_of_a_mesh_is_no_ollama_for_its_workers() -> None:
    """What is asked there would come back to them, again and again."""
    with served() as mesh:
        url = f"http://127.0.0.1:{mesh.port}"
        with pytest.raises(BackendAnswerError, match=f"{url} is d8mesh itself: expected"):
            Catalogue().read(url, within_s=PATIENCE_S)


def test_one_that_keeps_back_what_is_loaded_is_there_all_the_same(server: OllamaServer) -> None:
    catalogue = Catalogue()
    server.loaded = ("llama3:8b",)
    catalogue.read(server.url, within_s=PATIENCE_S)
    server.silent_paths.add("/api/ps")
    found = catalogue.read(server.url, within_s=0.3)
    assert found.models == ("llama3:8b",)
    assert found.loaded == ("llama3:8b",)


@pytest.mark.parametrize(
    ("name", "capabilities", "families", "why"),
    [
        ("llama3:8b", {"completion", "tools"}, (), ""),
        ("odd-embed:1b", {"completion"}, (), ""),
        ("x:1b", {"embedding"}, (), IS_EMBEDDING),
        ("x:1b", {"image"}, (), CANNOT_CHAT),
        ("x:cloud", {"completion"}, (), IS_CLOUD),
        ("x:1b-cloud", set(), (), IS_CLOUD),
        ("cloudy:1b", set(), (), ""),
        ("x:1b", set(), ("xlm-roberta", "bert"), IS_EMBEDDING),
        ("snowflake-arctic-embed:22m", set(), (), IS_EMBEDDING),
        ("x:1b", set(), ("llama",), ""),
    ],
)
def test_capabilities_decide_and_without_them_family_and_name(
    name: str, capabilities: set[str], families: tuple[str, ...], why: str
) -> None:
    assert why_not(name, Shown(frozenset(capabilities), False), families) == why


def test_until_when_a_model_is_kept_is_told_by_the_clock_of_the_service() -> None:
    there = datetime(2031, 5, 1, 12, tzinfo=UTC)  # wrong by years: that does no harm
    kept = kept_until_of("2031-05-01T15:00:00.123456789+02:00", there) - time.monotonic()
    assert 3590 < kept < 3601
    assert kept_until_of("2318-01-01T00:00:00Z", there) == math.inf
    assert kept_until_of("2318-01-01T00:00:00Z", None) == math.inf
    for odd in ("2031-05-01T12:30:00", "soon", 7, None):
        assert kept_until_of(odd, there) == 0
    assert kept_until_of("2031-05-01T15:00:00Z", None) == 0  # whose clock?
