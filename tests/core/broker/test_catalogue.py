"""The models that programs list: each once, those of machines away too."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.core.broker import catalogue
from d8mesh.core.protocol import messages as m
from tests.core.llm_services import host, model, offer, service
from tests.core.wired_broker import WiredBroker


def asked(broker: WiredBroker, what: str = "catalogue", **args: Any) -> dict[str, Any]:
    answer = broker.ask(broker.client("f" * 16), what, **args)
    assert answer.code == "", answer.body
    return answer.body


def test_without_services_there_is_nothing_to_list(broker: WiredBroker) -> None:
    assert asked(broker) == {"models": [], "left_out": 0}


def test_a_model_is_listed_once_with_all_its_names_and_where_it_is_loaded(
    broker: WiredBroker,
) -> None:
    told = {
        "digest": "d", "size_bytes": 9, "modified_at": "2025-11-29", "details": {"family": "l"},
        "context_tokens": 4096, "vram_bytes": 7, "expires_s": 300.0,
    }  # fmt: skip
    host(broker, "w", [service("a", [model("m:1b", **told)])])
    host(broker, "v", [service("b", [model("alias", digest="d", is_loaded=False)])])
    broker.now += 100.0
    broker.at += 100.0
    (listed,) = asked(broker)["models"]
    assert listed == {
        "name": "m:1b", "names": ["m:1b", "alias"], "digest": "d", "size_bytes": 9,
        "modified_at": "2025-11-29", "details": {"family": "l"}, "can": ["completion"],
        "context_tokens": 4096, "is_cloud": False,
        "loaded": [{
            "name": "m:1b", "machine": "machine-a", "service": "a", "vram_bytes": 7,
            "context_tokens": 4096, "expires_s": pytest.approx(200.0, abs=2.0),
        }],
    }  # fmt: skip


@pytest.mark.parametrize(("told_s", "listed_s"), [(-1.0, -1.0), (0.0, 0.0), (5.0, 0.001)])
def test_a_model_may_stay_for_ever_or_nobody_knows_or_go_any_moment(
    broker: WiredBroker, told_s: float, listed_s: float
) -> None:
    host(broker, "w", [service("a", [model("m", digest="", expires_s=told_s)])])
    broker.now += 100.0
    assert asked(broker)["models"][0]["loaded"][0]["expires_s"] == listed_s


def test_models_stay_listed_while_their_machines_are_away(broker: WiredBroker) -> None:
    peer = host(broker, "w", [service("a", [model("m"), model("n")])])
    broker.say(peer, m.Goodbye("off"))
    listed = asked(broker)["models"]
    assert [(each["name"], each["loaded"]) for each in listed] == [("m", []), ("n", [])]
    host(broker, "w", [service("a", [model("m")])])
    assert [each["name"] for each in asked(broker)["models"]] == ["m"]


def test_a_model_that_was_removed_is_listed_no_more(broker: WiredBroker) -> None:
    peer = host(broker, "w", [service("a", [model("m"), model("n")])])
    offer(broker, peer, [service("a", [model("n")])])
    assert [each["name"] for each in asked(broker)["models"]] == ["n"]


def test_more_than_a_frame_holds_is_counted(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "MAX_CATALOGUE_MODELS", 1)
    host(broker, "w", [service("a", [model("m"), model("n")])])
    assert asked(broker)["left_out"] == 1


def test_a_description_is_found_by_any_name_also_while_the_machine_is_away(
    broker: WiredBroker,
) -> None:
    peer = host(broker, "w", [service("a", [model("m:latest", digest="d")])])
    told = msgspec.msgpack.encode({"license": "MIT"})
    broker.say(peer, m.Described("a", "m:latest", told))
    broker.say(peer, m.Described("a", "nobody", told))
    expected = {"name": "m:latest", "digest": "d", "payload": told}
    assert asked(broker, "describe", name="M") == expected
    broker.say(peer, m.Goodbye("off"))
    assert asked(broker, "describe", name="library/m") == expected


def test_of_a_model_that_is_unknown_or_not_described_nothing_is_told(broker: WiredBroker) -> None:
    host(broker, "w", [service("a", [model("m", digest="d")])])
    assert asked(broker, "describe", name="m") == {"name": "m", "digest": "d", "payload": None}
    nothing = {"name": None, "digest": None, "payload": None}
    assert asked(broker, "describe", name="other") == nothing
    answer = broker.ask(broker.client("f" * 16), "describe")
    assert answer.code == "task.invalid"
