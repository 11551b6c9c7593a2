"""Calls of tools that must be made, or must not, where Ollama itself knows no such choice.

What must not be called is not offered. A call that must be made is asked for as a text in the form
of one (``format``), and that text is the call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from d8mesh.backends.answer_in_pieces import MAX_TEXT_BYTES
from d8mesh.backends.ollama.faults import SERVICE
from d8mesh.backends.streaming import clean_object
from d8mesh.core.protocol.chat import NO_CALL, SOME_CALL, JsonObject, Piece
from d8mesh.errors import BackendTooLargeError

#: Of `ChatRequest.more`, what Ollama takes in no form.
NOT_TAKEN: Final = ("logit_bias", "min_tokens")
_CHOSEN_HERE: Final = frozenset({"tool_choice", "parallel_tool_calls", *NOT_TAKEN})

PieceOf = Callable[[Any], Piece]


@dataclass(frozen=True, slots=True)
class ChosenCalls:
    """What is sent of `ChatRequest.more`, and what the answer then means."""

    more: JsonObject
    #: the text is a call
    is_must: bool = False
    #: of several calls only the first is wanted
    is_single: bool = False
    #: what of the request is not used
    ignored: tuple[str, ...] = ()

    def reading(self, piece_of: PieceOf) -> PieceOf:
        """Return what a line of the answer means, by what it means to Ollama."""
        if self.is_single:
            piece_of = _FirstCall(piece_of).piece_of
        return _TextAsCall(piece_of).piece_of if self.is_must else piece_of


def chosen_calls(more: JsonObject) -> ChosenCalls:
    """Return how it is asked for what `more` says of tools and their calls."""
    sent = {name: value for name, value in more.items() if name not in _CHOSEN_HERE}
    ignored = tuple(name for name in NOT_TAKEN if name in more)
    is_single, choice = more.get("parallel_tool_calls") is False, more.get("tool_choice")
    if choice == NO_CALL:
        sent.pop("tools", None)
    if choice in (None, NO_CALL):
        return ChosenCalls(sent, is_single=is_single, ignored=ignored)
    if "format" in sent:
        ignored = ("format", *ignored)
    tools = sent.get("tools")
    sent["format"] = _form_of(choice, tools if isinstance(tools, Sequence) else ())
    return ChosenCalls(sent, is_must=True, is_single=True, ignored=ignored)


def _form_of(choice: object, tools: Sequence[Any]) -> JsonObject:
    """Return the JSON schema of a call of the chosen tool, or of any."""
    wanted = None if choice == SOME_CALL or not isinstance(choice, Mapping) else choice["function"]
    forms = [
        _form(tool["function"])
        for tool in tools
        if wanted is None or tool["function"]["name"] == wanted["name"]
    ]
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _form(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
    }


class _FirstCall:
    """Passes over every call but the first."""

    def __init__(self, piece_of: PieceOf) -> None:
        self._piece_of = piece_of
        self._is_called = False

    def piece_of(self, answer: Any) -> Piece:
        piece = self._piece_of(answer)
        if not piece.tool_calls:
            return piece
        calls = () if self._is_called else piece.tool_calls[:1]
        self._is_called = True
        return replace(piece, tool_calls=calls, is_working=True)


class _TextAsCall:
    """Keeps the text back until it is whole; then it is a call, or, if it was cut, a text."""

    def __init__(self, piece_of: PieceOf) -> None:
        self._piece_of = piece_of
        self._texts: list[str] = []
        self._size = 0
        self._is_called = False

    def piece_of(self, answer: Any) -> Piece:
        piece = self._piece_of(answer)
        self._is_called |= bool(piece.tool_calls)  # it has found a call in the text by itself
        self._texts.append(piece.text)
        self._size += len(piece.text)
        if self._size > MAX_TEXT_BYTES:
            raise BackendTooLargeError(f"{SERVICE} sent a call of more than {MAX_TEXT_BYTES} bytes")
        if piece.ending is None:
            return replace(piece, text="", is_working=True)
        text = "".join(self._texts)
        if self._is_called:
            return replace(piece, text="")
        call = _call_in(text)
        if call is None:
            return replace(piece, text=text)
        return replace(piece, text="", tool_calls=(call,))


def _call_in(text: str) -> JsonObject | None:
    """Return the call that a text is; None: it is cut, or none."""
    try:
        told = json.loads(text)
        name, arguments = told["name"], told["arguments"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return {"function": {"index": 0, "name": name, "arguments": clean_object(arguments)}}
