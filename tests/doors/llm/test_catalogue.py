"""What the doors know of models: each once by every name, from memory while the broker is away."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from d8mesh.doors.llm.catalogue import KNOWN_S, KnownModel, ModelCatalogue
from d8mesh.errors import BrokerUnavailableError


def loaded(service: str, **more: Any) -> dict[str, Any]:
    told = {"name": "m", "machine": service.partition(":")[0], "service": service}
    return told | {"vram_bytes": 0, "context_tokens": 0, "expires_s": 0.0} | more


def model(*names: str, **more: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"name": names[0], "names": [*names], "digest": None, "size_bytes": 0}
    told |= {"modified_at": "", "details": {}, "can": [], "context_tokens": 0}
    return told | {"is_cloud": False, "loaded": []} | more


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
            packed = None if self.described is None else msgspec.msgpack.encode(self.described)
            return {"name": "m", "digest": None, "payload": packed}
        if what == "catalogue":
            return {"models": self.models, "left_out": 0}
        assert what == "models"
        service = {"id": "pi:1", "machine": "pi", "state": "online", "is_managed": True}
        places = [{"service": "pi:1", "is_loaded": each["name"] == "m:1b"} for each in self.models]
        told = [
            {"names": each["names"], "places": [place]}
            for each, place in zip(self.models, places, strict=True)
        ]
        return {"models": told, "services": [service]}


TWO = (model("m:1b", "other:latest"), model("e:latest", "E", digest="dd", size_bytes=7))


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


def test_a_name_of_two_models_means_the_one_that_is_in_memory() -> None:
    old = model("m:1b", digest="old")
    new = model("m:1b", digest="new", loaded=[loaded("pi:1")])

    async def program() -> None:
        catalogue = ModelCatalogue(Orchestrator(old, new))
        found = await catalogue.find("m:1b")
        assert found is not None
        assert found.digest == "new"
        assert [each.digest for each in (await catalogue.named()).values()] == ["new"]

    asyncio.run(program())


@pytest.mark.parametrize("lists_cloud", [False, True])
def test_models_of_the_cloud_are_there_only_if_they_may_be_used(lists_cloud: bool) -> None:
    far = model("gpt-oss", is_cloud=True)

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
        orchestrator.models.append(model("new"))
        later = time.monotonic() + KNOWN_S / 2
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert await catalogue.find("new") is not None

    asyncio.run(program())


def test_what_is_loaded_says_where_and_until_when() -> None:
    for_ever = loaded("pi:1", expires_s=-1, vram_bytes=5)
    soon = loaded("mac:1", expires_s=60.0, context_tokens=4096)

    async def program() -> KnownModel | None:
        told = model("m:1b", loaded=[for_ever, soon])
        return await ModelCatalogue(Orchestrator(told)).find("m:1b")

    found = asyncio.run(program())
    assert found is not None
    first, second = found.loaded
    assert (first.machine, first.size_vram, first.expires_at) == ("pi", 5, math.inf)
    assert (second.machine, second.context_length) == ("mac", 4096)
    assert 55 < second.expires_at - time.time() <= 60


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


def test_all_services_are_told_with_what_they_have() -> None:
    async def program() -> None:
        (service,) = await ModelCatalogue(Orchestrator(*TWO)).services()
        assert (service.id, service.machine) == ("pi:1", "pi")
        assert service.is_online
        assert service.is_managed
        assert service.models == {"m:1b", "other:latest", "e:latest"}
        assert service.loaded == {"m:1b", "other:latest"}

    asyncio.run(program())
