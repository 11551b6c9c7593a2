"""Each field of a language model's task is checked: handed on, or refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.core.protocol.chat import Prompt
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.chat_fields import (
    AGENT_FIELDS,
    agent_request,
    code_request,
    embedding_request,
    generate_request,
    ignored_fields,
    reloading_fields,
)
from d8mesh.nodes.client.wishes import wish_of

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "How are you?"}]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"stop": ["x"], "options": {"stop": "y"}}, "stop: given twice, in the data and in"),
        ({"seed": {}}, r"options\.seed: expected a number"),
        ({"function_call": "auto"}, "function_call: expected here: tool_choice"),
        ({"logit_bias": [1]}, "logit_bias: expected an object"),
        ({"logit_bias": {"7": 101}}, "logit_bias: expected an object"),
        ({"min_tokens": 0}, "min_tokens: expected"),
        ({"model_defaults": 1}, "model_defaults: expected true or false"),
        ({"system": "be kind"}, "system: expected here: a message of the role system"),
        ({"format": "xml"}, "format: expected"),
        ({"options": [1]}, "options: expected an object"),
        ({"options": {"stop": {}}}, r"options\.stop: expected"),
        ({"options": {"temperature": 1}, "temperature": 1}, "temperature: given twice"),
        ({"options": {"num_predict": -1}}, r"options\.num_predict: expected .* to 10000000"),
        ({"think": "very"}, "think: expected"),
        ({"keep_alive": []}, "keep_alive: expected"),
        ({"model_strict": "yes"}, "model_strict: expected true or false"),
        ({"model_strict": True}, "model_strict: there is no model"),
        ({"top_logprobs": 21}, "top_logprobs: expected"),
        ({"keep_alive": "10"}, "keep_alive: expected seconds, or a text"),
        ({"models": []}, "models: expected a list of 1 to 16 names"),
        ({"models": "a"}, "models: expected a list"),
        ({"models": ["a", ""]}, "models: expected a list"),
        ({"models": ["../x"]}, "models: expected the name of a model"),
        ({"models": ["a"], "model": "b"}, "models: name the model there, or in model"),
        ({"cloud": "maybe"}, "cloud: expected one of never, overflow, yes"),
        ({"cloud": True}, "cloud: expected one of"),
        ({"machine": 1}, "machine: expected the name"),
        ({"machine": "a\n"}, "machine: expected the name"),
        ({"machine": "a;b"}, "machine: expected the name"),
        ({"machine": "a" * 129}, "machine: expected the name"),
        ({"models": ["a"], "model_strict": False}, "model_strict: expected true"),
        ({"pieces": "yes"}, "pieces: expected true or false"),
        ({"shift": "no"}, "shift: expected true or false"),
    ],
)
def test_what_cannot_be_handed_on_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        agent_request(QUESTION | data)


def test_code_generation_refuses_what_only_agent_action_knows() -> None:
    with pytest.raises(InvalidTaskError, match="tools: code_generation has no such field"):
        code_request({"prompt": "x", "tools": []})


def test_null_is_the_same_as_nothing() -> None:
    nothing = dict.fromkeys(AGENT_FIELDS - {"messages"})
    message = {"role": "user", "content": "x", "images": None, "name": None, "tool_calls": None}
    request = agent_request(nothing | {"messages": [message], "stop": None})
    assert request.messages == ({"role": "user", "content": "x"},)
    assert (request.more, request.options, request.model) == ({}, {}, None)


def test_an_empty_machine_is_any_as_who_submits_has_it() -> None:
    assert agent_request(data := QUESTION | {"machine": ""}).messages
    assert wish_of("agent_action", data) == ""


def test_a_language_may_be_null() -> None:
    assert code_request({"prompt": "x", "language": None}) == code_request({"prompt": "x"})


def test_whether_the_answer_streams_changes_nothing_and_stops_nothing() -> None:
    assert agent_request(QUESTION | {"stream": False}) == agent_request(QUESTION)
    assert ignored_fields(QUESTION | {"stream": False}, AGENT_FIELDS) == ["stream"]


def test_a_model_that_is_a_must_is_one() -> None:
    request = agent_request(QUESTION | {"model": "llama3", "model_strict": True})
    assert (request.model, request.is_model_strict) == ("llama3", True)


def test_fields_that_mean_nothing_are_named_in_order() -> None:
    assert ignored_fields(QUESTION | {"z": 1, "a": None}, AGENT_FIELDS) == ["a", "z"]


def test_what_other_interfaces_say_is_handed_on_or_named() -> None:
    told = [
        {"role": "user", "content": "hi", "name": "bob", "timestamp": 1.5},
        {"role": "tool", "content": "42", "name": "answer"},
    ]
    data = {"messages": told, "top_p": 0.9, "seed": 7, "stop": ["x"], "options": {"num_ctx": 10}}
    request = agent_request(data)
    assert request.options == {"top_p": 0.9, "seed": 7, "stop": ["x"]}
    assert request.messages[0] == {"role": "user", "content": "hi"}
    assert request.messages[1]["tool_name"] == "answer"
    assert ignored_fields(data, AGENT_FIELDS) == ["messages[].name", "messages[].timestamp"]


# --- prompts ----------------------------------------------------------------------------


def test_all_of_a_prompt_is_handed_on() -> None:
    request = generate_request(
        {"prompt": "a", "suffix": "b", "images": ["aGVsbG8="], "system": "c", "template": "d",
         "context": [1, 2], "format": "json", "think": True, "logprobs": True, "seed": 3,
         "truncate": False}
    )  # fmt: skip
    assert request.prompt == Prompt(
        text="a", suffix="b", images=("aGVsbG8=",), system="c", template="d", context=(1, 2)
    )
    assert request.needs == {"vision", "insert"}
    assert request.options == {"seed": 3}
    assert request.more == {"format": "json", "think": True, "logprobs": True, "truncate": False}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "Missing field: prompt"),
        ({"prompt": ""}, "prompt: expected a text that is not empty"),
        ({"prompt": 1}, "prompt: expected a text"),
        ({"prompt": "x", "suffix": 1}, "suffix: expected a text"),
        ({"prompt": "x", "context": ["1"]}, "context: expected the list of integers"),
        ({"prompt": "x", "context": [True]}, "context: expected the list of integers"),
        ({"prompt": "x", "raw": True, "system": "y"}, "raw: .* without system"),
        ({"prompt": "x", "raw": 1}, "raw: expected true or false"),
        ({"prompt": "x", "images": ["/etc/passwd"]}, r"images\[0\]: expected a picture"),
        ({"prompt": "x", "messages": []}, "messages: generate has no such field"),
        ({"prompt": "x", "n": 2}, "n: expected here: several tasks"),
    ],
)
def test_a_wrong_generate_names_the_field(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        generate_request(data)


# --- models and places ------------------------------------------------------------------


def test_models_go_in_order_and_no_others_will_do() -> None:
    request = agent_request(QUESTION | {"models": ["a", "b", "c"], "cloud": "overflow"})
    assert (request.model, request.fallbacks) == ("a", ("b", "c"))
    assert request.is_model_strict


def test_load_options_reach_no_request_wherever_they_stand() -> None:
    data = QUESTION | {"num_ctx": "many", "options": {"num_batch": {}, "top_k": 3}, "shift": True}
    request = agent_request(data)
    assert (request.options, request.more) == ({"top_k": 3}, {})
    assert [each.partition(" ")[0] for each in reloading_fields(data)] == [
        "num_ctx", "options.num_batch", "shift",
    ]  # fmt: skip
    assert ignored_fields(data, AGENT_FIELDS) == []
    embedded = embedding_request({"model": "e", "input": "x", "options": {"num_ctx": 1, "seed": 1}})
    assert embedded.options == {"seed": 1}
