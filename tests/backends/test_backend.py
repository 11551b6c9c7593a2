"""The table of backends: each row makes those that the settings name, and all keep the promises."""

from __future__ import annotations

from dataclasses import replace

import pytest

from d8mesh.backends import BACKENDS, configured
from d8mesh.backends.backend import Availability
from d8mesh.config import Config

#: Nobody listens there.
NOWHERE = Config.from_env(
    {
        "DEEPSEEK_BASE_URL": "http://127.0.0.1:9",
        "D8_OPENAI_HOSTS": "http://127.0.0.1:9",
        "GROQ_API_KEY": "gsk_0123456789",
        "GROQ_BASE_URL": "http://127.0.0.1:9",
        "GEMINI_API_KEY": "AIza0123456789",
        "GEMINI_BASE_URL": "http://127.0.0.1:9",
        "D8_CLOUD": "yes",
    }
)


@pytest.mark.parametrize("kind", [kind for kind in BACKENDS if kind != "embedded"])
def test_a_probe_of_a_service_that_is_not_there_says_so_and_raises_nothing(kind: str) -> None:
    (backend,) = BACKENDS[kind](replace(NOWHERE, worker_type=kind))
    seen = backend.probe()
    assert (backend.kind, seen.is_up, seen.models) == (kind, False, ())
    assert "127.0.0.1:9" in seen.reason


def test_each_host_is_a_service_of_its_own_and_the_own_one_alone_has_the_default() -> None:
    hosts = ("http://10.9.9.1:11434", "http://127.0.0.1:9", "http://10.9.9.2:11434")
    config = replace(NOWHERE, ollama_hosts=hosts, ollama_model="mine:1b")
    made = BACKENDS["ollama"](config)
    assert [each.url for each in made] == ["http://127.0.0.1:9", hosts[0], hosts[2]]


def test_a_worker_of_a_kind_with_a_key_has_that_service_alone() -> None:
    def kinds(worker_type: str | None) -> list[str]:
        return [each.kind for each in configured(replace(NOWHERE, worker_type=worker_type))]

    assert kinds("groq") == ["groq"]
    assert {"ollama", "openai"} <= set(kinds("deepseek"))


def test_what_is_in_memory_changes_nothing_of_what_is_offered() -> None:
    assert Availability(is_up=True, loaded=("a",)) == Availability(is_up=True)
