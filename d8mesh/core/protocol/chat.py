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

from d8mesh.setting_forms import LOADING_OPTIONS

#: A JSON object, as it was sent.
JsonObject = Mapping[str, object]
#: Task types that LLM services answer: ``data["model"]`` is a wish that placement honours.
MODEL_TYPES: Final = frozenset({"agent_action", "code_generation", "embed", "generate"})
#: What a model must be capable of, as Ollama calls it.
VISION: Final = "vision"
TOOLS: Final = "tools"
INSERT: Final = "insert"
THINKING: Final = "thinking"
COMPLETION: Final = "completion"
EMBEDDING: Final = "embedding"
#: What ``more["tool_choice"]`` may be: no call, or any one; or of one tool, as
#: ``{"type": "function", "function": {"name"}}``. Without it the model chooses.
NO_CALL: Final = "none"
SOME_CALL: Final = "required"
#: A token is about so many bytes of UTF-8.
BYTES_PER_TOKEN: Final = 4
#: Ollama's options that a model is loaded with: another value loads it anew, so there is one set
#: for each model in the whole pool, and no task changes it.
LOAD_OPTIONS: Final = LOADING_OPTIONS


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  #: the model was done
    LENGTH = "length"  #: its bound of tokens was used up: the answer is cut
    TOOL_CALLS = "tool_calls"  #: it waits for the results of the tools that it calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text to go on with, instead of a conversation."""

    text: str = ""
    #: what stands behind the gap that the model is to fill; needs `INSERT`
    suffix: str = ""
    #: base64 of each picture
    images: tuple[str, ...] = ()
    #: in place of the model's own; None: its own
    system: str | None = None
    template: str | None = None
    #: of the answer before, as it came there
    context: tuple[int, ...] = ()
    #: the text goes to the model as it is, without a template
    is_raw: bool = False

    @property
    def is_plain(self) -> bool:
        """True if a conversation can say the same: `ChatRequest.conversation` does."""
        return not (self.suffix or self.template is not None or self.context or self.is_raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation to go on with, or a prompt; None leaves the choice to the backend."""

    #: objects with ``role``, ``content`` and what else a message of Ollama's may carry
    messages: tuple[JsonObject, ...] = ()
    #: if there is one it is asked, and there are no messages
    prompt: Prompt | None = None
    model: str | None = None
    #: those that may run it if `model` is not there, in order
    fallbacks: tuple[str, ...] = ()
    #: no other model than `model`, and `fallbacks`, will do
    is_model_strict: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    #: how the model generates, by the names of Ollama's options; none of `LOAD_OPTIONS`
    options: JsonObject = field(default_factory=dict)
    #: a temperature, or a bound of the answer, that is not named is the model's own
    has_model_defaults: bool = False
    #: what else is handed on as it is: tools, tool_choice, format, think, keep_alive, logprobs, …
    more: JsonObject = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        """Those that may run it, in order; empty leaves the choice to the backend."""
        return tuple(name for name in (self.model, *self.fallbacks) if name)

    @property
    def needs(self) -> frozenset[str]:
        """What the model must be capable of: `VISION`, `TOOLS`, `INSERT`."""
        has_images = any(message.get("images") for message in self.messages)
        wanted = (
            (VISION, has_images or bool(self.prompt and self.prompt.images)),
            (TOOLS, bool(self.more.get("tools"))),
            (INSERT, bool(self.prompt and self.prompt.suffix)),
        )
        return frozenset(name for name, is_needed in wanted if is_needed)

    @property
    def conversation(self) -> tuple[JsonObject, ...]:
        """The messages, or those that say the same as the prompt; see `Prompt.is_plain`."""
        if self.prompt is None:
            return self.messages
        asked: dict[str, object] = {"role": "user", "content": self.prompt.text}
        if self.prompt.images:
            asked["images"] = list(self.prompt.images)
        system = self.prompt.system
        return (*([{"role": "system", "content": system}] if system else []), asked)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: those of the prompt that the service still had in memory; they are counted in it
    cached_tokens: int = 0

    @property
    def total(self) -> int:
        """Of the question and the answer together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds that a request took at the service, by its own account; 0 where it does not tell."""

    load_s: float = 0.0
    prompt_s: float = 0.0
    output_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ending:
    """What a service says when its answer is complete."""

    finish_reason: FinishReason = FinishReason.STOP
    usage: Usage = Usage()
    timing: Timing = Timing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which LLM service gave an answer."""

    #: its id in the pool
    service: str
    #: the machine that it runs on, for people
    machine: str
    #: its kind: a row of `BACKENDS`
    backend: str
    is_cloud: bool


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
    #: fields of the service's answer that have no place here, as they came
    extra: JsonObject = field(default_factory=dict)
    #: it gets further, though there is nothing to tell yet: the arguments of a long call
    is_working: bool = False

    @property
    def is_sign_of_life(self) -> bool:
        """True if the model has said something, though it may be no text."""
        return bool(self.text or self.thinking or self.tool_calls or self.is_working)

    @property
    def is_text(self) -> bool:
        """True if it is some text of the answer and nothing else."""
        return not (
            self.thinking
            or self.tool_calls
            or self.logprobs
            or self.ending
            or self.extra
            or self.is_working
        )

    @property
    def size_bytes(self) -> int:
        """How much of a result it takes, about."""
        if self.is_text:
            return len(self.text.encode())
        others = [*self.tool_calls, *self.logprobs, *([self.extra] if self.extra else ())]
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
    #: fields of the service's answer that have no place here: the last of each name
    extra: JsonObject = field(default_factory=dict)
    #: who answered; None where no pool was asked
    origin: Origin | None = None
    #: fields of the request that the service does not take
    ignored: tuple[str, ...] = ()


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
        extra={name: value for piece in pieces for name, value in piece.extra.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts of which a model makes vectors."""

    texts: tuple[str, ...]
    #: no other will do: vectors of different models cannot be compared
    model: str
    #: None: the model's own
    dimensions: int | None = None
    #: by the names of Ollama's options; none of `LOAD_OPTIONS`
    options: JsonObject = field(default_factory=dict)
    more: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """`vectors[i]` belongs to the text i of the request."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    usage: Usage = Usage()
    timing: Timing = Timing()
    extra: JsonObject = field(default_factory=dict)
    origin: Origin | None = None
    #: fields of the request that the service does not take
    ignored: tuple[str, ...] = ()
