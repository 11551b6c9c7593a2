"""From what a request asks to the tasks of a submit."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from d8mesh.core.protocol.source import source_of
from d8mesh.core.protocol.wish import parse_wish
from d8mesh.doors.llm.asked import Caller, LlmTask
from d8mesh.doors.llm.wanted import (
    check_models,
    data_of,
    digest_of_all,
    group_of,
    missing_of,
    needs_of,
)
from d8mesh.errors import ModelUnfitError, ModelUnknownError
from tests.doors.llm.plain_door import KnownNames

CALLER = Caller(door="plain", address="10.0.0.7", program="app/1")
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def chat(**data: Any) -> LlmTask:
    return LlmTask(type="agent_action", data=HELLO | data, model="m")


def test_no_other_model_answers_unless_the_caller_names_it() -> None:
    assert data_of(chat()) == HELLO | {"model": "m", "model_strict": True, "pieces": True}
    assert data_of(chat(), ("a", "b"))["models"] == ["m", "a", "b"]
    vectors = LlmTask(type="embed", data={"input": "x"}, model="e")
    assert data_of(vectors, ("a",)) == {"input": "x", "model": "e", "model_strict": True}
    pull = LlmTask(type="model_pull", data={"machine": "pc"}, model="m")
    assert data_of(pull) == {"machine": "pc", "model": "m"}


def test_a_task_tells_its_wish_its_priority_and_where_it_came_from() -> None:
    group = group_of(CALLER, chat())
    wish = parse_wish(group.model)
    assert (wish.models, wish.is_strict) == (("m",), True)
    assert wish.conversation
    assert group.priority == CALLER.priority
    assert source_of(group.source).caller == "10.0.0.7 app/1"
    assert msgspec.msgpack.decode(group.payloads[0])["messages"] == HELLO["messages"]


def test_a_key_is_of_its_door_and_of_what_is_asked_and_not_of_how() -> None:
    keyed = Caller(door="plain", address="a", key="k")
    urgent = Caller(door="plain", address="b", key="k", priority=10)
    digest = digest_of_all([group_of(keyed, chat())])
    assert digest == digest_of_all([group_of(urgent, chat())])
    assert digest != digest_of_all([group_of(keyed, chat(seed=1))])
    assert digest != digest_of_all([group_of(keyed, chat())] * 2)


@pytest.mark.parametrize(
    ("kind", "data", "needed"),
    [
        ("embed", {"input": "x", "tools": [1]}, {"embedding"}),
        ("agent_action", {}, {"completion"}),
        ("agent_action", {"tools": [1]}, {"completion", "tools"}),
        ("agent_action", {"messages": [{"images": ["x"]}]}, {"completion", "vision"}),
        ("generate", {"images": ["x"], "suffix": "y"}, {"completion", "vision", "insert"}),
        ("agent_action", {"think": "high"}, {"completion", "thinking"}),
        ("agent_action", {"think": False}, {"completion"}),
    ],
)
def test_what_is_asked_tells_what_a_model_must_be_capable_of(
    kind: str, data: dict[str, Any], needed: set[str]
) -> None:
    assert needs_of(kind, data) == needed


def test_who_does_not_tell_of_an_ability_is_believed_to_have_it() -> None:
    chats, vectors = frozenset({"completion"}), frozenset({"embedding"})
    assert missing_of(frozenset({"completion", "tools"}), frozenset()) == ""
    assert missing_of(chats, frozenset({"tools"})) == ""
    assert missing_of(chats, vectors) == "completion"
    assert missing_of(chats | {"tools"}, chats) == "tools"
    assert missing_of(vectors, chats) == "embedding"


def check(names: set[str], can: set[str], caller: Caller, *tasks: LlmTask) -> None:
    asyncio.run(check_models(KnownNames(frozenset(can), frozenset(names)), caller, tasks))


def test_models_are_looked_for_by_any_of_their_spellings() -> None:
    check({"m:latest"}, {"completion"}, CALLER, chat())
    check(set(), set(), CALLER, LlmTask(type="model_pull", data={}, model="new"))
    with pytest.raises(ModelUnknownError) as unknown:
        check({"other"}, {"completion"}, CALLER, chat())
    assert unknown.value.details["model"] == "m"
    patient = Caller(door="d", address="a", fallbacks=("other",))
    check({"other"}, {"completion"}, patient, chat())
    with pytest.raises(ModelUnknownError):  # no other model's vectors will do
        check({"other"}, set(), patient, LlmTask(type="embed", data={"input": "x"}, model="e"))
    assert str(unknown.value) == "model 'm' not found; the mesh has other"
    with pytest.raises(ModelUnknownError, match=r"the mesh has m00, .*m09, and 5 more"):
        check({f"m{n:02}" for n in range(15)}, set(), CALLER, chat())
    with pytest.raises(ModelUnknownError, match="no machine of the mesh has a language model"):
        check(set(), set(), CALLER, chat())


def test_a_model_that_cannot_do_it_is_unfit() -> None:
    with pytest.raises(ModelUnfitError, match='"m" does not support tools') as unfit:
        check({"m"}, {"completion"}, CALLER, chat(tools=[1]))
    assert unfit.value.details == {"model": "m", "lacks": "tools"}
