"""What a task's data wishes for: the same from Python and REST, and errors that name the field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from d8mesh.core.protocol.wish import NO_WISH, Cloud, Wish, lane_part, parse_wish
from d8mesh.doors.rest.schemas import SubmitOne
from d8mesh.errors import InvalidTaskError
from d8mesh.nodes.client.groups import Template, groups_of
from d8mesh.nodes.client.wishes import wish_of
from tests.nodes.mesh import PATIENCE_S, Mesh, mesh_in

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Why is the sky blue?"}]}


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


def wish(data: dict[str, Any], kind: str = "agent_action") -> Wish:
    return parse_wish(wish_of(kind, data))


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({}, NO_WISH),
        ({"model": None, "models": None, "cloud": None, "machine": None}, NO_WISH),
        ({"model": "", "machine": ""}, NO_WISH),
        ({"model": "m:1b"}, Wish(models=("m:1b",))),
        ({"model": "m", "model_strict": True}, Wish(models=("m",), is_strict=True)),
        ({"model": "m", "model_strict": False}, Wish(models=("m",))),
        ({"model_strict": True}, NO_WISH),
        ({"models": ["b", "a", "b"]}, Wish(models=("b", "a"), is_strict=True)),
        ({"models": ["a"], "model_strict": True}, Wish(models=("a",), is_strict=True)),
        ({"models": ["a"], "model": ""}, Wish(models=("a",), is_strict=True)),
        ({"cloud": "never"}, Wish(cloud=Cloud.NEVER)),
        ({"cloud": "yes", "model": "m"}, Wish(models=("m",), cloud=Cloud.YES)),
        ({"machine": "pi 4 (küche)"}, Wish(machine="pi 4 (küche)")),
        ({"tools": [{"type": "function"}]}, Wish(needs=frozenset({"tools"}))),
        ({"tools": []}, NO_WISH),
        ({"messages": [{"role": "user", "images": ["aGk="]}]}, Wish(needs=frozenset({"vision"}))),
        ({"images": ["aGk="], "suffix": "}"}, Wish(needs=frozenset({"vision", "insert"}))),
        ({"suffix": ""}, NO_WISH),
        ({"messages": "none", "tools": None, "images": None}, NO_WISH),
        ({"messages": [1, "x", {"images": []}]}, NO_WISH),
    ],
)
def test_a_wish_is_made_of_what_the_data_says(data: dict[str, Any], wanted: Wish) -> None:
    assert wish(data) == wanted


def test_vectors_need_a_model_that_makes_them() -> None:
    assert wish({"model": "e", "input": "x"}, "embed").needs == {"embedding"}


def test_types_that_no_service_answers_wish_for_nothing() -> None:
    for kind in ("echo", "evolution_mutation", ["agent_action"]):
        assert wish_of(kind, {"model": 5, "models": 5, "machine": ";", "cloud": 1}) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["model_pull", "model_remove"])
def test_what_manages_models_names_one_and_where(kind: str) -> None:
    assert wish_of(kind, {"model": "m:1b", "machine": "pi"}, is_one=True) == "m:1b;on=pi"
    assert wish_of(kind, {"model": "m:1b", "model_strict": True, "tools": [1]}) == "m:1b"
    assert parse_wish(wish_of(kind, {"machine": "pi"})) == Wish(machine="pi")
    with pytest.raises(InvalidTaskError, match=r"data\.machine: saw 'a;b', expected the name of"):
        wish_of(kind, {"machine": "a;b"})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"model": 5}, "data.model: saw '5', expected a model name such as"),
        ({"model": "a|b"}, "data.model: saw 'a|b', expected a model name"),
        ({"model": "a;cloud=yes"}, "data.model: saw 'a;cloud=yes', expected a model name"),
        ({"model": "m#1"}, "data.model: saw 'm#1', expected a model name"),
        ({"model_strict": 1}, "data.model_strict: saw '1', expected true or false"),
        ({"models": "a"}, "data.models: saw 'a', expected a list of 1 to 16 names of models"),
        ({"models": []}, "data.models: saw '[]', expected a list of 1 to 16"),
        ({"models": ["a"] * 17}, "data.models: saw \"['a', 'a'"),
        ({"models": ["a", ""]}, "data.models[1]: saw '', expected a model name"),
        ({"models": ["a", "b c"]}, "data.models[1]: saw 'b c', expected a model name"),
        ({"models": ["a"], "model": "b"}, "data.models: saw a model too, expected one of both"),
        ({"models": ["a"], "model_strict": False}, "data.model_strict: saw 'False', expected true"),
        ({"models": ["m" * 100 + str(n) for n in range(16)]}, "data.models: their names take more"),
        ({"cloud": "maybe"}, "data.cloud: saw 'maybe', expected never, overflow or yes"),
        ({"cloud": True}, "data.cloud: saw 'True', expected never, overflow or yes"),
        ({"cloud": ["yes"]}, "data.cloud: saw \"['yes']\", expected never, overflow or yes"),
        ({"machine": 7}, "data.machine: saw '7', expected the name of a machine"),
        ({"machine": "x" * 129}, "data.machine: saw 'xxx"),
        ({"machine": " x"}, "data.machine: saw ' x', expected"),
        ({"machine": "x#1"}, "data.machine: saw 'x#1', expected"),
        ({"machine": "x\n"}, "data.machine: saw 'x\\n', expected"),
        ({"machine": "x\x01"}, "data.machine: saw 'x\\x01', expected"),
    ],
)
def test_what_is_no_wish_is_refused_with_the_field_and_what_it_must_be(
    data: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidTaskError) as caught:
        wish_of("agent_action", data)
    assert str(caught.value).startswith(said)
    tasks = [SubmitOne("echo", {}), SubmitOne("agent_action", data)]
    with pytest.raises(InvalidTaskError) as caught:
        groups_of(tasks, is_batch=True)
    assert str(caught.value).startswith(f"tasks[1].{said}")


def test_one_task_by_itself_tells_what_helps_to_choose() -> None:
    data = {
        "model": "m",
        "max_tokens": 64,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "äöü?"},
            {"role": "assistant", "content": None},
            {"role": "user", "content": "x" * 24},
        ],
    }
    (group,) = groups_of([SubmitOne("agent_action", data)], is_batch=False)
    found = parse_wish(group.model)
    assert lane_part(group.model) == "m"
    assert (found.prompt_tokens, found.output_tokens) == (10, 64)  # 9 + 7 + 24 bytes
    assert len(found.conversation) == 16


def test_a_conversation_keeps_its_name_and_others_have_another() -> None:
    def name(*messages: tuple[str, str]) -> str:
        data = {"messages": [{"role": role, "content": text} for role, text in messages]}
        return parse_wish(wish_of("agent_action", data, is_one=True)).conversation

    began = (("system", "Be brief."), ("user", "Hello"))
    assert name(*began) == name(*began, ("assistant", "Hi"), ("user", "Why?"))
    others = {name(("user", "Hello")), name(("system", "Be brief."), ("user", "Hi")), name(*began)}
    assert len(others) == 3
    assert name(("system", "Be brief.")) == name() == ""


@pytest.mark.parametrize(
    ("kind", "data", "wanted"),
    [
        ("embed", {"model": "e", "input": ["abcd", "efgh", 5]}, (2, 0)),
        ("embed", {"model": "e", "input": "abcde"}, (2, 0)),
        ("code_generation", {"prompt": "x" * 40, "options": {"num_predict": 9}}, (10, 9)),
        ("agent_action", {"messages": [], "max_tokens": True}, (0, 0)),
        ("agent_action", {"max_tokens": -1, "options": {"num_predict": 9}}, (0, 0)),
        ("agent_action", {"max_tokens": 10**9, "options": 5}, (0, 0)),
        ("agent_action", {"messages": [{"role": ["user"], "content": "abcd"}]}, (1, 0)),
    ],
)
def test_the_length_of_question_and_answer_is_guessed(
    kind: str, data: dict[str, Any], wanted: tuple[int, int]
) -> None:
    found = parse_wish(wish_of(kind, data, is_one=True))
    assert (found.prompt_tokens, found.output_tokens, found.conversation) == (*wanted, "")


def test_many_at_once_that_wish_for_the_same_share_a_group() -> None:
    datas = [
        {"model": "m", "messages": [{"role": "user", "content": "x" * n}]} for n in range(1, 9)
    ]
    (group,) = Template("agent_action", {}).cut(datas)
    assert (group.model, len(group.payloads)) == ("m", 8)
    (group,) = groups_of([SubmitOne("agent_action", data) for data in datas], is_batch=True)
    assert (group.model, len(group.payloads)) == ("m", 8)
    first, second = Template("agent_action", {}).cut([{"models": ["a", "b"]}, {"machine": "pi"}])
    assert (first.model, second.model) == ("=a|b", ";on=pi")


def test_python_and_rest_make_the_same_of_one_task() -> None:
    (group,) = groups_of([SubmitOne("agent_action", CHAT)], is_batch=False)
    assert group.model == wish_of("agent_action", CHAT, is_one=True) != ""


def test_a_client_is_told_what_is_wrong_before_anything_is_sent(mesh: Mesh) -> None:
    client = mesh.client(mesh.broker())
    for submit in (client.submit, client.call):
        with pytest.raises(InvalidTaskError, match=r"data\.cloud: saw 'no'"):
            submit("agent_action", {"cloud": "no"})
    with pytest.raises(InvalidTaskError, match=r"data\.models: saw 'm'"):
        client.submit_many("agent_action", [CHAT, {"models": "m"}])


def test_a_task_with_every_kind_of_wish_reaches_a_worker_as_it_was_given(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, name="pi")
    worker.register("agent_action", lambda data: msgspec.json.encode(data).decode())
    mesh.run(worker)
    data = {
        **CHAT,
        "model": "m",
        "cloud": "never",
        "machine": "pi",
        "tools": [{"type": "function"}],
    }
    client = mesh.client(port)
    assert client.call("agent_action", data, timeout=PATIENCE_S)["output"] == (
        msgspec.json.encode(data).decode()
    )
