"""What the bodies of /api/embed and /api/embeddings ask."""

from __future__ import annotations

import json
from typing import Any

import pytest

from d8mesh.doors.llm.chats import MAX_TASKS
from d8mesh.doors.ollama.vector_requests import TASK_TEXTS, embed_in, embeddings_in
from d8mesh.errors import InvalidTaskError, ModelUnknownError


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "e"} | fields).encode()


def test_a_text_or_several_are_one_task() -> None:
    assert embed_in(body(input="a")).datas == [{"input": ["a"]}]
    assert embed_in(body(input=["a", "b"])).datas == [{"input": ["a", "b"]}]


@pytest.mark.parametrize("count", [TASK_TEXTS + 1, TASK_TEXTS * MAX_TASKS + 1])
def test_many_texts_are_several_tasks_in_their_order_but_never_too_many(count: int) -> None:
    texts = [str(n) for n in range(count)]
    datas = embed_in(body(input=texts)).datas
    assert 1 < len(datas) <= MAX_TASKS
    assert [text for data in datas for text in data["input"]] == texts


@pytest.mark.parametrize("fields", [{}, {"input": ""}, {"input": []}, {"input": None}])
def test_no_text_is_no_task(fields: dict[str, Any]) -> None:
    assert embed_in(body(**fields)).datas == []


def test_what_else_is_asked_is_in_every_task_and_what_makes_texts_is_named() -> None:
    more = {"truncate": False, "dimensions": 8, "keep_alive": "1m"}
    asked = embed_in(body(input="a", **more, options={"num_ctx": 1, "temperature": 0.5}, x=1))
    assert asked.datas == [{"input": ["a"], **more}]
    assert asked.ignored == ("x", "options.num_ctx", "options.temperature")


def test_the_old_form_has_one_prompt() -> None:
    asked = embeddings_in(body(prompt="a"))
    assert (asked.datas, asked.is_old) == ([{"input": ["a"]}], True)
    assert embeddings_in(body(prompt="")).datas == []


@pytest.mark.parametrize("told", [5, [1], {"a": 1}, ["a", None]])
def test_what_is_no_text_is_refused_in_ollamas_words(told: Any) -> None:
    with pytest.raises(InvalidTaskError, match="invalid input type"):
        embed_in(body(input=told))


def test_dimensions_are_a_whole_number() -> None:
    with pytest.raises(InvalidTaskError, match="dimensions: expected 1 to"):
        embed_in(body(input="a", dimensions=-1))


def test_no_model_is_a_model_that_is_not_there() -> None:
    for read in (embed_in, embeddings_in):
        with pytest.raises(ModelUnknownError, match="model '' not found"):
            read(b'{"input": "a"}')
