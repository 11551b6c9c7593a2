"""Which names mean the same model."""

from __future__ import annotations

import pytest

from d8mesh.core.protocol.model_names import matching, nearest, plain_name, shown_name, wish_in


@pytest.mark.parametrize(
    "name",
    [
        "llama3",
        "llama3:latest",
        "Llama3",
        "library/llama3",
        " registry.ollama.ai/library/llama3:latest",
    ],
)
def test_every_spelling_of_a_model_is_one_name(name: str) -> None:
    assert plain_name(name) == "llama3:latest"


@pytest.mark.parametrize("name", ["llama3:8b", "mine/llama3:latest", "hf.co/user/llama3:latest"])
def test_another_tag_namespace_or_host_is_another_model(name: str) -> None:
    assert plain_name(name) == name


def test_the_tag_is_behind_the_last_slash() -> None:
    assert plain_name("host:5000/m") == "host:5000/m:latest"


def test_a_mark_makes_a_wish_a_must() -> None:
    assert wish_in("llama3") == ("llama3:latest", False)
    assert wish_in("=llama3:8b") == ("llama3:8b", True)


def test_a_wished_model_is_found_in_any_spelling_its_own_first() -> None:
    assert matching("", ["llama3"]) is None
    assert matching("qwen", ["llama3"]) is None
    assert matching("Llama3", ["qwen", "library/llama3", "llama3:latest"]) == "library/llama3"
    assert matching("llama3:latest", ["library/llama3", "llama3:latest"]) == "llama3:latest"


@pytest.mark.parametrize(
    ("wished", "near"),
    [
        ("llama3", "llama3:8b"),
        ("llama3:70b", "llama3:8b"),
        ("lama3", "llama3:8b"),
        ("qwen2.5-3b", "qwen2.5:3b"),
        ("QWEN2.5:3B", ""),
        ("gpt-oss", ""),
    ],
)
def test_a_name_that_none_has_is_near_to_another_tag_or_to_what_was_mistyped(
    wished: str, near: str
) -> None:
    assert nearest(wished, ["nomic-embed-text:latest", "llama3:8b", "qwen2.5:3b"]) == near
    assert nearest(wished, []) == ""


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("m", "m:latest"),
        (" library/M:1B ", "M:1B"),
        ("registry.ollama.ai/library/m", "m:latest"),
        ("registry.ollama.ai/ns/m", "ns/m:latest"),
        ("hf.co/User/Repo:Q4_K_M", "hf.co/User/Repo:Q4_K_M"),
        ("host:5000/ns/m", "host:5000/ns/m:latest"),
    ],
)
def test_a_list_shows_the_shortest_spelling_with_its_tag(name: str, shown: str) -> None:
    assert shown_name(name) == shown
    assert plain_name(shown) == plain_name(name)
