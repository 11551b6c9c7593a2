"""What the doors know of models: each once by every name, from memory while the broker is away."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

import pytest

from d8mesh.doors.llm.catalogue import KNOWN_S, KnownModel, ModelCatalogue
from d8mesh.errors import BrokerUnavailableError, UnknownTaskError


def place(service: str, name: str, **more: Any) -> dict[str, Any]:
    machine = service.partition(":")[0]
    return {"service": service, "machine": machine, "name": name, "is_loaded": False} | more


def model(*names: str, places: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    told = {"name": names[0], "names": [*names], "places": places, "is_cloud": False}
    return told | {"digest": None, "size_bytes": None, "can": []} | more


class Orchestrator:
    """Answers as an orchestrator with these models."""

    def __init__(self, *models: dict[str, Any], described: dict[str, Any] | None = None) -> None:
        self.models, self.described = [*models], described
        self.is_connected = True
        self.asked = 0

    async def ask(self, what: str, args: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
        self.asked += 1
        await asyncio.sleep(0)
        if not self.is_connected:
            raise BrokerUnavailableError
        if what == "describe":
            if self.described is None:
                raise UnknownTaskError("describe: no such question")
            return self.described
        service = {"id": "pi:1", "machine": "pi", "state": "online", "is_managed": True}
        return {"models": self.models, "services": [service]}


TWO = (
    model("m:1b", "other:latest", places=[place("pi:1", "m:1b"), place("mac:1", "other:latest")]),
    model("e:latest", "E", places=[place("pi:1", "e:latest")], digest="dd", size_bytes=7),
)


def test_a_model_is_found_by_every_name_and_spelling() -> None:
    async def program() -> None:
        catalogue = ModelCatalogue(Orchestrator(*TWO))
        for name in ("m:1b", "library/M:1B", "other", "registry.ollama.ai/library/other:latest"):
            found = await catalogue.find(name)
            assert found is not None
            assert found.name == "m:1b", name
        assert await catalogue.find("m:2b") is None

    asyncio.run(program())


def test_a_model_is_listed_once_by_each_name_with_its_tag() -> None:
    async def program() -> None:
        named = await ModelCatalogue(Orchestrator(*TWO)).named()
        assert {name: each.name for name, each in named.items()} == {
            "m:1b": "m:1b",
            "other:latest": "m:1b",
            "e:latest": "e:latest",
        }

    asyncio.run(program())


def test_a_name_of_two_models_means_the_one_that_more_machines_have() -> None:
    old = model("m:1b", places=[place("pi:1", "m:1b")], digest="old")
    new = model("m:1b", places=[place("a:1", "m:1b"), place("b:1", "m:1b")], digest="new")

    async def program() -> None:
        catalogue = ModelCatalogue(Orchestrator(old, new))
        found = await catalogue.find("m:1b")
        assert found is not None
        assert found.digest == "new"
        assert [each.digest for each in (await catalogue.named()).values()] == ["new"]

    asyncio.run(program())


@pytest.mark.parametrize("lists_cloud", [False, True])
def test_models_of_the_cloud_are_there_only_if_they_may_be_used(lists_cloud: bool) -> None:
    far = model("gpt-oss", places=[place("groq:1", "gpt-oss")], is_cloud=True)

    async def program() -> None:
        catalogue = ModelCatalogue(Orchestrator(*TWO, far), lists_cloud=lists_cloud)
        assert (await catalogue.find("gpt-oss") is not None) is lists_cloud

    asyncio.run(program())


def test_many_who_ask_at_once_are_one_question_and_one_who_leaves_stops_no_other() -> None:
    async def program() -> None:
        orchestrator = Orchestrator(*TWO)
        catalogue = ModelCatalogue(orchestrator)
        first = asyncio.ensure_future(catalogue.models())
        others = [asyncio.ensure_future(catalogue.find("m:1b")) for _ in range(20)]
        await asyncio.sleep(0)
        first.cancel()
        assert all(await asyncio.gather(*others))
        assert orchestrator.asked == 1

    asyncio.run(program())


def test_what_is_known_holds_while_the_broker_is_away() -> None:
    async def program() -> None:
        orchestrator = Orchestrator(*TWO)
        catalogue = ModelCatalogue(orchestrator)
        assert await catalogue.find("m:1b")
        orchestrator.is_connected = False
        catalogue.forget()
        assert await catalogue.find("m:1b")
        assert orchestrator.asked == 1

    asyncio.run(program())


def test_a_broker_that_never_was_there_is_an_error_and_asked_again() -> None:
    async def program() -> None:
        orchestrator = Orchestrator(*TWO)
        catalogue = ModelCatalogue(orchestrator)
        orchestrator.is_connected = False
        for _ in range(2):
            with pytest.raises(BrokerUnavailableError):
                await catalogue.models()
        orchestrator.is_connected = True
        assert await catalogue.find("m:1b")

    asyncio.run(program())


def test_a_new_model_is_found_though_what_is_known_is_not_a_second_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def program() -> None:
        orchestrator = Orchestrator(*TWO)
        catalogue = ModelCatalogue(orchestrator)
        assert await catalogue.find("new") is None
        orchestrator.models.append(model("new", places=[place("pi:1", "new")]))
        later = time.monotonic() + KNOWN_S / 2
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert await catalogue.find("new") is not None

    asyncio.run(program())


def test_what_is_loaded_says_where_and_until_when() -> None:
    for_ever = place("pi:1", "m:1b", is_loaded=True, expires_s=-1, vram_bytes=5)
    soon = place("mac:1", "m:1b", is_loaded=True, expires_s=60.0, context_tokens=4096)

    async def program() -> KnownModel | None:
        told = model("m:1b", places=[for_ever, soon, place("x:1", "m:1b")])
        return await ModelCatalogue(Orchestrator(told)).find("m:1b")

    found = asyncio.run(program())
    assert found is not None
    first, second = found.loaded
    assert (first.machine, first.size_vram, first.expires_at) == ("pi", 5, math.inf)
    assert (second.machine, second.context_length) == ("mac", 4096)
    assert 55 < second.expires_at - time.time() <= 60
    assert found.services == ("pi:1", "mac:1", "x:1")


def test_what_a_model_cannot_do_is_known_only_where_it_is_told() -> None:
    assert KnownModel(name="m", names=("m",), can=frozenset({"completion"})).lacks("tools")
    assert not KnownModel(name="m", names=("m",), can=frozenset({"tools"})).lacks("tools")
    assert not KnownModel(name="m", names=("m",)).lacks("tools")


def test_a_description_is_what_was_told_or_nothing() -> None:
    async def program() -> None:
        told = {"template": "{{ .Prompt }}"}
        assert await ModelCatalogue(Orchestrator(described=told)).describe("m") == told
        assert await ModelCatalogue(Orchestrator()).describe("m") is None

    asyncio.run(program())


def test_all_services_are_told() -> None:
    async def program() -> None:
        (service,) = await ModelCatalogue(Orchestrator()).services()
        assert (service.id, service.machine) == ("pi:1", "pi")
        assert service.is_online
        assert service.is_managed

    asyncio.run(program())
