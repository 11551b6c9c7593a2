"""Models of services that are away, and what is told of models at length: bounded."""

from __future__ import annotations

import pytest

from d8mesh.core.broker import model_memory
from d8mesh.core.broker.model_memory import REMEMBERED_S, AwayModel, ModelMemory
from d8mesh.core.protocol.messages import OfferedModel


def leave(memory: ModelMemory, name: str, since: float = 1.0, service: str = "s") -> None:
    memory.leave(service, AwayModel("pi", False, OfferedModel(name), since))


def names(memory: ModelMemory) -> list[str]:
    return [f"{service}/{model.info.name}" for service, model in memory.away()]


def test_what_a_service_had_is_remembered_until_it_is_back() -> None:
    memory = ModelMemory()
    leave(memory, "m")
    leave(memory, "m", service="t")
    memory.back("s")
    assert names(memory) == ["t/m"]


def test_it_is_forgotten_after_days() -> None:
    memory = ModelMemory()
    leave(memory, "old")
    leave(memory, "m", since=9.0)
    memory.forget(1.5 + REMEMBERED_S)
    assert names(memory) == ["s/m"]


def test_so_many_are_remembered_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_memory, "MAX_AWAY_MODELS", 2)
    memory = ModelMemory()
    for name in "abc":
        leave(memory, name)
    assert names(memory) == ["s/b", "s/c"]


def test_a_description_is_of_the_content_not_of_the_name() -> None:
    memory = ModelMemory()
    memory.describe("s", OfferedModel("m", "sha"), b"told")
    assert memory.description("t", OfferedModel("alias", "sha")) == b"told"
    assert memory.description("s", OfferedModel("m", "other")) == b""
    memory.describe("s", OfferedModel("plain"), b"by name")
    assert memory.description("s", OfferedModel("plain:latest")) == b"by name"


def test_descriptions_take_so_much_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_memory, "MAX_DESCRIPTIONS_BYTES", 10)
    memory = ModelMemory()
    for digest in "abc":
        memory.describe("s", OfferedModel("m", digest), b"12345")
        memory.describe("s", OfferedModel("m", digest), b"1234")  # told anew
        assert memory.description("s", OfferedModel("m", "a")) == b"1234"  # asked for: kept
    assert memory.description("s", OfferedModel("m", "b")) == b""
