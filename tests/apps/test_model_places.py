"""Which machines `models pull` and `models remove` mean."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh import words
from d8mesh.apps.model_places import Overview, Room, best, check_name, fitting, named, online
from d8mesh.errors import BackendUnavailableError, ConfigError
from d8mesh.words import translated
from tests.apps.listed_models import model, overview, place, service

GB = 10**9


def seen(**more: Any) -> Overview:
    body = overview() | more
    return Overview(models=body["models"], services=body["services"])


def machines(services: Any) -> list[str]:
    return [each["machine"] for each in services]


@pytest.mark.parametrize("word", ["pi5", "PI5", "w-pi5", "pi5:11434", "http://pi5:11434"])
def test_a_machine_is_named_in_any_way(word: str) -> None:
    assert machines(named(seen(), [word])) == ["pi5"]


def test_several_may_be_named_and_each_counts_once() -> None:
    assert machines(named(seen(), ["pi5", "nas", "w-pi5"])) == ["pi5", "nas"]


@pytest.mark.parametrize(
    ("word", "more", "text"),
    [
        ("pi6", {}, "--on pi6: no such machine; there are: attic, nas, pi5"),
        ("groq", {}, "--on groq: the models of groq cannot be changed there"),
        ("x", {"services": []}, "--on x: no service is there whose models can be changed"),
    ],
)
def test_an_unknown_machine_is_told_with_those_that_are_there(
    word: str, more: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        named(seen(**more), [word])
    assert str(caught.value) == text
    words.use("es")
    try:
        assert translated(text) != text
    finally:
        words.use("en")


def test_of_many_machines_some_are_named() -> None:
    with pytest.raises(ConfigError, match=r"m10, m11, …$"):
        named(seen(services=[service(f"m{n:02}") for n in range(20)]), ["x"])


def test_only_what_is_online_can_be_changed() -> None:
    assert machines(online(seen())) == ["pi5", "nas"]
    with pytest.raises(BackendUnavailableError, match="no service is there"):
        online(seen(services=[service("attic", state="down")]))


def test_it_fits_where_there_is_room() -> None:
    rooms = {
        "pi5:11434": Room(fits=False, why="its files take 4.7 GB, 3.1 GB of disk are free"),
        "nas:11434": Room(fits=True, memory_bytes=16 * GB),
    }
    targets, left_out = fitting(seen(), "big", rooms)
    assert machines(targets) == ["nas"]
    assert left_out == ["pi5: its files take 4.7 GB, 3.1 GB of disk are free"]


def test_a_machine_that_has_run_as_large_a_model_has_room() -> None:
    big = model("big", place("attic", "big"), size_bytes=4 * GB)
    bigger = model("bigger", place("nas", "bigger", requests=3), size_bytes=5 * GB)
    targets, left_out = fitting(seen(models=[big, bigger]), "big", {})
    assert machines(targets) == ["nas"]
    assert left_out == ["pi5: it is not known whether it fits"]


def test_the_best_is_the_one_with_most_memory() -> None:
    rooms = {
        "pi5:11434": Room(fits=True, memory_bytes=8 * GB),
        "nas:11434": Room(fits=True, memory_bytes=32 * GB),
    }
    found = best(seen(), "new", rooms)
    assert found is not None
    target, why = found
    assert (target["machine"], why) == ("nas", "no other has more memory: 32.0 GB")


def test_the_best_has_it_not_yet() -> None:
    rooms = {
        "pi5:11434": Room(fits=True, memory_bytes=8 * GB),
        "nas:11434": Room(fits=True, memory_bytes=32 * GB),
    }
    found = best(seen(models=[model("m", place("nas", "m"))]), "m:latest", rooms)
    assert found is not None
    assert found[0]["machine"] == "pi5"


def test_why_the_best_is_that_is_told_truly() -> None:
    only = best(seen(services=[service("pi5")]), "m", {})
    assert only is not None
    assert only[1] == "it is the only one that can take it"
    has_run = model("o", place("pi5", "o", requests=1), size_bytes=3 * GB)
    largest = best(seen(models=[has_run]), "m", {})
    assert largest is not None
    assert (largest[0]["machine"], largest[1]) == (
        "pi5",
        "no other has run a larger model: 3.0 GB",
    )
    nothing = best(seen(models=[]), "m", {})
    assert nothing is not None
    assert nothing[1] == "nothing is known of their memory: the first by name"
    nowhere = {each["id"]: Room(fits=False) for each in seen().services}
    assert best(seen(), "m", nowhere) is None


def test_a_size_is_known_if_anybody_has_the_model() -> None:
    assert seen().size_of("CHAT") == 1_900_000_000
    assert seen().size_of("unknown") == 0


@pytest.mark.parametrize("name", ["bad name!", "", "a:", "/m"])
def test_what_no_model_can_be_called_is_told_before_anything_is_done(name: str) -> None:
    with pytest.raises(ConfigError, match="NAME: expected a model's name"):
        check_name(name)
    check_name("hf.co/User/Model-GGUF:Q4_K_M")
