"""What is said to a language model and what it says: one vocabulary for all who handle it.

Handlers make requests of task data, backends turn them into their service's form and its answer
into pieces, doors into the form of their clients. Pure: plain values, no service's names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

#: A JSON object, as it was sent.
JsonObject = Mapping[str, object]
#: Task types whose ``data["model"]`` is a wish that placement honours.
MODEL_TYPES: Final = frozenset({"agent_action", "code_generation", "embed"})
#: What a model must be capable of, as Ollama calls it.
VISION: Final = "vision"
TOOLS: Final = "tools"


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  #: the model was done
    LENGTH = "length"  #: its bound of tokens was used up: the answer is cut
    TOOL_CALLS = "tool_calls"  #: it waits for the results of the tools that it calls


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation to go on with; None leaves the choice to the backend."""

    #: objects with ``role``, ``content`` and what else a message of Ollama's may carry
    messages: tuple[JsonObject, ...]
    model: str | None = None
    #: no other model than `model` will do
    is_model_strict: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    #: how the model generates, by the names of Ollama's options
    options: JsonObject = field(default_factory=dict)
    #: what else is handed on as it is: tools, format, think, …
    more: JsonObject = field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        """What the model must be capable of: `VISION`, `TOOLS`."""
        has_images = any(message.get("images") for message in self.messages)
        wanted = ((VISION, has_images), (TOOLS, bool(self.more.get("tools"))))
        return frozenset(name for name, is_needed in wanted if is_needed)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total(self) -> int:
        """Of the question and the answer together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Ending:
    """What a service says when its answer is complete."""

    finish_reason: FinishReason = FinishReason.STOP
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Piece:
    """What a model has said since the piece before; the last one has an `ending`."""

    text: str = ""
    #: what it thinks before it answers, where the service tells that apart
    thinking: str = ""
    #: calls of tools that it asks for, each whole
    tool_calls: tuple[JsonObject, ...] = ()
    #: of the tokens of the answer, if they were asked for
    logprobs: tuple[object, ...] = ()
    ending: Ending | None = None

    @property
    def is_sign_of_life(self) -> bool:
        """True if the model has said something, though it may be no text."""
        return bool(self.text or self.thinking or self.tool_calls)

    @property
    def size_bytes(self) -> int:
        """How much of a result it takes, about."""
        others = [*self.tool_calls, *self.logprobs]
        size = len(self.text.encode()) + len(self.thinking.encode())
        return size + (len(json.dumps(others)) if others else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished answer."""

    text: str
    #: the model that really ran
    model: str
    thinking: str = ""
    tool_calls: tuple[JsonObject, ...] = ()
    logprobs: tuple[object, ...] = ()
    ending: Ending = Ending()


def completion_of(pieces: Sequence[Piece], model: str) -> Completion:
    """Return the answer that `pieces` make; the last one must have an ending."""
    ending = pieces[-1].ending
    if ending is None:
        raise ValueError("an answer without an ending is not complete")
    calls = tuple(call for piece in pieces for call in piece.tool_calls)
    if calls and ending.finish_reason is FinishReason.STOP:
        ending = replace(ending, finish_reason=FinishReason.TOOL_CALLS)
    return Completion(
        text="".join(piece.text for piece in pieces),
        model=model,
        thinking="".join(piece.thinking for piece in pieces),
        tool_calls=calls,
        logprobs=tuple(each for piece in pieces for each in piece.logprobs),
        ending=ending,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts of which a model makes vectors."""

    texts: tuple[str, ...]
    #: no other will do: vectors of different models cannot be compared
    model: str
    #: None: the model's own
    dimensions: int | None = None
    more: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """`vectors[i]` belongs to the text i of the request."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    usage: Usage = Usage()
