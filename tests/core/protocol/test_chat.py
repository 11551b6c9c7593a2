"""The vocabulary of requests to language models and their answers."""

from __future__ import annotations

import pytest

from d8mesh.core.protocol.chat import (
    ChatRequest,
    Ending,
    FinishReason,
    Piece,
    Prompt,
    Usage,
    completion_of,
)


def test_the_pieces_of_an_answer_make_the_whole() -> None:
    call = {"function": {"name": "add"}}
    ending = Ending(FinishReason.LENGTH, Usage(3, 4))
    pieces = [
        Piece(thinking="h"), Piece("a", "m", logprobs=({"token": "a"},)),
        Piece("b", tool_calls=(call,)), Piece(ending=ending),
    ]  # fmt: skip
    whole = completion_of(pieces, "m")
    assert (whole.text, whole.thinking, whole.tool_calls) == ("ab", "hm", (call,))
    assert (whole.logprobs, whole.ending) == (({"token": "a"},), ending)
    assert whole.ending.usage.total == 7


def test_an_answer_that_ends_with_calls_of_tools_waits_for_their_results() -> None:
    pieces = [Piece(tool_calls=({"function": {"name": "add"}},)), Piece(ending=Ending())]
    assert completion_of(pieces, "m").ending.finish_reason is FinishReason.TOOL_CALLS


def test_an_answer_without_an_ending_is_not_complete() -> None:
    with pytest.raises(ValueError, match="not complete"):
        completion_of([Piece("a")], "m")


def test_a_piece_knows_its_size_and_whether_the_model_lives() -> None:
    assert Piece("é").size_bytes == 2
    assert Piece("é", "a").size_bytes == 3
    assert Piece(tool_calls=({"a": 1},)).size_bytes == len('[{"a": 1}]')
    assert [p.is_sign_of_life for p in (Piece(), Piece("a"), Piece(thinking="a"))] == [
        False, True, True,
    ]  # fmt: skip


def test_what_a_request_needs_of_a_model() -> None:
    plain = ChatRequest(messages=({"role": "user", "content": "x"},))
    seeing = ChatRequest(messages=({"role": "user", "images": ["eA=="]},), more={"tools": [{}]})
    assert (plain.needs, seeing.needs) == (frozenset(), frozenset({"vision", "tools"}))


# --- prompts ----------------------------------------------------------------------------


def test_a_plain_prompt_is_a_conversation_of_its_own() -> None:
    request = ChatRequest(prompt=Prompt(text="hi", system="be kind", images=("eA==",)))
    assert request.prompt is not None
    assert request.prompt.is_plain
    assert request.conversation == (
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi", "images": ["eA=="]},
    )
    assert request.needs == {"vision"}
    assert ChatRequest(prompt=Prompt(text="hi")).conversation == (
        {"role": "user", "content": "hi"},
    )
    messages = ({"role": "user", "content": "x"},)
    assert ChatRequest(messages=messages).conversation == messages


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(text="a", suffix="b"),
        Prompt(text="a", template="{{ .Prompt }}"),
        Prompt(text="a", context=(1,)),
        Prompt(text="a", is_raw=True),
    ],
)
def test_what_no_conversation_can_say_is_no_plain_prompt(prompt: Prompt) -> None:
    assert not prompt.is_plain
    assert ("insert" in ChatRequest(prompt=prompt).needs) is bool(prompt.suffix)


def test_fields_without_a_place_are_kept_by_their_names() -> None:
    pieces = [Piece("a", extra={"x": 1, "y": 1}), Piece(ending=Ending(), extra={"y": 2})]
    assert completion_of(pieces, "m").extra == {"x": 1, "y": 2}
    assert pieces[1].size_bytes == len('[{"y": 2}]')


def test_the_models_of_a_request_are_the_first_and_those_behind_it() -> None:
    assert ChatRequest(model="a", fallbacks=("b",)).models == ("a", "b")
    assert ChatRequest().models == ()
