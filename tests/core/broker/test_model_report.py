"""Every model of the mesh, once, and where it is."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.core.broker import model_report
from tests.core.llm_services import host, model, offer, service
from tests.core.wired_broker import WiredBroker


def models(broker: WiredBroker) -> dict[str, Any]:
    answer = broker.ask(broker.client("f" * 16), "models")
    assert answer.code == ""
    return answer.body


def test_without_services_there_is_nothing_to_tell(broker: WiredBroker) -> None:
    broker.worker("w")
    nothing = {"models": [], "services": [], "waiting_for_any": 0, "left_out": 0}
    assert models(broker) == nothing


def test_more_than_a_frame_holds_is_counted(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_report, "MAX_PLACES_TOLD", 3)
    host(broker, "w", [service(name, [model("m"), model("n")]) for name in "abc"])
    told = models(broker)
    assert told["left_out"] == 3
    assert sum(len(each["places"]) for each in told["models"]) == 3
    assert len(told["services"]) == 3


def test_one_content_is_one_model_whatever_it_is_called(broker: WiredBroker) -> None:
    host(broker, "w", [service("a", [model("m:latest", digest="d1", size_bytes=9)])])
    host(broker, "v", [service("b", [model("alias:1b", digest="d1"), model("m", digest="d2")])])
    host(broker, "u", [service("c", [model("m:latest", digest="d1", is_loaded=False)])])
    told = models(broker)["models"]
    assert [(each["name"], each["names"], each["digest"]) for each in told] == [
        ("m", ["m"], "d2"),
        ("m:latest", ["m:latest", "alias:1b"], "d1"),
    ]
    assert told[1]["size_bytes"] == 9
    assert [(each["machine"], each["name"], each["is_loaded"]) for each in told[1]["places"]] == [
        ("machine-a", "m:latest", True),
        ("machine-b", "alias:1b", True),
        ("machine-c", "m:latest", False),
    ]


def test_models_without_a_digest_are_one_by_their_name(broker: WiredBroker) -> None:
    host(
        broker,
        "w",
        [service("a", [model("M", digest="")]), service("b", [model("m:latest", digest="")])],
    )
    (told,) = models(broker)["models"]
    assert told["names"] == ["M", "m:latest"]


def test_who_runs_and_who_waits_is_counted(broker: WiredBroker) -> None:
    host(broker, "w", [service("a", [model("m"), model("n")], default="n")])
    client = broker.client()
    broker.submit(client, 3, kind="agent_action", model="m:latest")
    broker.submit(client, 4, kind="agent_action", model="=m#abc.10.20")
    broker.submit(client, 2, kind="agent_action")
    broker.submit(client, 5, kind="echo")
    told = models(broker)
    counts = {
        each["name"]: (each["in_flight"], each["slots"], each["waiting"]) for each in told["models"]
    }
    assert counts == {"m": (1, 1, 6), "n": (1, 1, 0)}
    assert told["waiting_for_any"] == 1
    (only,) = told["services"]
    assert (only["in_flight"], only["workers"], only["models"]) == (2, ["w"], ["m", "n"])


def test_what_was_not_measured_is_null(broker: WiredBroker) -> None:
    blank = model("m", digest="", requests=0, prompt_tokens_per_s=0.0, output_tokens_per_s=0.0)
    host(broker, "w", [service("a", [blank])])
    (told,) = models(broker)["models"]
    (place,) = told["places"]
    assert told["digest"] is None
    assert told["size_bytes"] is None
    unknown = ("load_s", "prompt_tokens_per_s", "output_tokens_per_s", "paused", "budget")
    assert [place[name] for name in unknown] == [None] * 5


def test_a_pause_and_the_cloud_are_told(broker: WiredBroker) -> None:
    lan = service("a", [model("m", paused="out of memory")])
    cloud = service("g", [model("big")], kind="groq", is_cloud=True)
    host(broker, "w", [cloud, lan])
    told = models(broker)
    assert [(each["name"], each["is_cloud"]) for each in told["models"]] == [
        ("m", False),
        ("big", True),
    ]
    assert told["models"][0]["places"][0]["paused"] == "out of memory"
    assert [(each["id"], each["is_managed"]) for each in told["services"]] == [
        ("a", True),
        ("g", False),
    ]


def test_a_service_that_offers_nothing_says_why(broker: WiredBroker) -> None:
    host(broker, "w", [service("a", [], why="Ollama does not answer")])
    (told,) = models(broker)["services"]
    assert (told["state"], told["reason"]) == ("down", "Ollama does not answer")


def test_a_service_that_nobody_reaches_any_more_is_away(broker: WiredBroker) -> None:
    worker = host(broker, "w", [service("a", [model("m")]), service("b")])
    broker.submit(broker.client(), 1, kind="agent_action", model="m;on=a")
    offer(broker, worker, [service("b")])
    told = {each["id"]: each for each in models(broker)["services"]}
    assert (told["a"]["state"], told["a"]["in_flight"], told["a"]["workers"]) == ("away", 1, [])


def test_what_a_service_had_that_is_down_is_listed_with_why(broker: WiredBroker) -> None:
    host(broker, "w", [service("a", [model("m:1b")])])
    other = host(broker, "v", [service("b", [model("m:1b"), model("n:1b")])])
    offer(broker, other, [service("b", [], why="it is off")])
    told = models(broker)
    places = {
        each["name"]: [(place["machine"], place["state"]) for place in each["places"]]
        for each in told["models"]
    }
    assert places == {
        "m:1b": [("machine-a", "online"), ("machine-b", "down")],
        "n:1b": [("machine-b", "down")],
    }
    assert [each["slots"] for each in told["models"]] == [1, 0]
    assert [each["reason"] for each in told["services"]] == [None, "it is off"]
    offer(broker, other, [service("b", [model("n:1b")])])
    (again,) = (each for each in models(broker)["models"] if each["name"] == "n:1b")
    assert [place["state"] for place in again["places"]] == ["online"]
