"""The table of backends: each row makes one that keeps the promises of all."""

from __future__ import annotations

import pytest
from d8mesh.backends.several import Several

from d8mesh import backends
from d8mesh.backends import BACKENDS, configured
from d8mesh.backends.backend import Availability, Backend
from d8mesh.config import Config

#: Nobody listens there.
NOWHERE = Config.from_env({"DEEPSEEK_BASE_URL": "http://127.0.0.1:9"})


@pytest.mark.parametrize("name", BACKENDS)
def test_a_probe_of_a_service_that_is_not_there_says_so_and_raises_nothing(name: str) -> None:
    backend = BACKENDS[name](NOWHERE)
    assert backend is not None
    seen = backend.probe()
    assert (backend.kind, seen.is_up, seen.models) == (name, False, ())
    assert "127.0.0.1:9" in seen.reason


def test_one_configured_backend_is_used_as_it_is_and_more_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = configured(NOWHERE)
    assert alone.kind == "ollama"

    def second(config: Config) -> Backend | None:
        return BACKENDS["ollama"](config)

    monkeypatch.setattr(
        backends, "BACKENDS", {**BACKENDS, "second": second, "none": lambda _: None}
    )
    both = configured(NOWHERE)
    assert isinstance(both, Several)
    assert both.kind == "ollama+ollama"


def test_what_is_in_memory_changes_nothing_of_what_is_offered() -> None:
    assert Availability(is_up=True, loaded=("a",)) == Availability(is_up=True)
