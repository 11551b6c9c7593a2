"""What each call of OpenAI's door takes and answers, for `/openapi.json`.

Source: OpenAI's API reference; fields that are not named here have no effect and are told of.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from d8mesh.core.protocol.json_model import MIN_INT
from d8mesh.doors.openai.completion_request import MAX_PROMPTS
from d8mesh.doors.openai.embedding_request import MAX_INPUTS
from d8mesh.doors.openai.sampling import MAX_CHOICES, MAX_PENALTY, MAX_STOPS
from d8mesh.handlers.chat_fields import (
    MAX_DIMENSIONS,
    MAX_TEMPERATURE,
    MAX_TOKENS,
    MAX_TOP_LOGPROBS,
)
from d8mesh.handlers.message_fields import MAX_MESSAGES
from d8mesh.http.described import EVENTS, AboutCall, AboutCalls, HttpReply, json_of

FilledText: TypeAlias = Annotated[str, Meta(min_length=1)]
Portion: TypeAlias = Annotated[float, Meta(ge=0, le=1)] | None
Temperature: TypeAlias = Annotated[float, Meta(ge=0, le=MAX_TEMPERATURE)] | None
Penalty: TypeAlias = Annotated[float, Meta(ge=-MAX_PENALTY, le=MAX_PENALTY)] | None
RepeatPenalty: TypeAlias = Annotated[float, Meta(ge=0, le=MAX_PENALTY)] | None
#: The seed of several answers counts up from it: 64 bits with a sign hold them all.
WholeNumber: TypeAlias = Annotated[int, Meta(ge=MIN_INT, le=2**63 - 1)] | None
Bound: TypeAlias = Annotated[int, Meta(ge=-1, le=MAX_TOKENS)] | None
Choices: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None
Logprobs: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None
Stops: TypeAlias = str | Annotated[list[str], Meta(max_length=MAX_STOPS)] | None
Anything: TypeAlias = dict[str, Any]
Efforts: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class OpenAiFault(Struct):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAiProblem(Struct):
    """How errors are told."""

    error: OpenAiFault


class OpenAiMessage(Struct):
    """One thing said; whether content may be missing depends on the role."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[Anything] | None = None
    refusal: str | None = None
    name: str | None = None
    images: list[str] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    tool_calls: list[Anything] | None = None
    function_call: Anything | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None


class SampledBody(Struct, kw_only=True):
    """How a model is to generate: what chats and completions share."""

    model: FilledText
    temperature: Temperature = None
    max_tokens: Bound = None
    max_completion_tokens: Bound = None
    top_p: Portion = None
    min_p: Portion = None
    top_k: WholeNumber = None
    seed: WholeNumber = None
    stop: Stops = None
    keep_alive: float | str | None = None
    truncate: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    logit_bias: Anything | None = None
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    repeat_penalty: RepeatPenalty = None
    repetition_penalty: RepeatPenalty = None
    options: Anything | None = None
    n: Choices = None
    stream: bool | None = None
    stream_options: Anything | None = None


class ChatCompletionBody(SampledBody, kw_only=True):
    """A chat."""

    messages: Annotated[list[OpenAiMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    tools: list[Anything] | None = None
    tool_choice: str | Anything | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Anything] | None = None
    function_call: str | Anything | None = None
    response_format: Anything | None = None
    reasoning_effort: Efforts | None = None
    reasoning: Anything | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs = None
    modalities: list[Literal["text"]] | None = None
    audio: Annotated[Anything, Meta(max_length=0)] | None = None


class CompletionBody(SampledBody, kw_only=True):
    """Texts to go on with."""

    prompt: FilledText | Annotated[list[FilledText], Meta(min_length=1, max_length=MAX_PROMPTS)]
    suffix: str | None = None
    echo: bool | None = None
    best_of: Choices = None
    logprobs: bool | Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    raw: bool | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None


class EmbeddingBody(Struct, kw_only=True):
    """Texts of which a model makes vectors."""

    model: FilledText
    input: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None = None
    truncate: bool | None = None
    keep_alive: float | str | None = None
    options: Anything | None = None


class ResponseBody(Struct, kw_only=True):
    """A whole conversation: nothing is kept here."""

    model: FilledText
    input: str | Annotated[list[Anything], Meta(min_length=1)]
    instructions: str | None = None
    tools: list[Anything] | None = None
    tool_choice: str | Anything | None = None
    parallel_tool_calls: bool | None = None
    temperature: Temperature = None
    top_p: Portion = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    text: Anything | None = None
    reasoning: Anything | None = None
    include: list[Any] | None = None
    top_logprobs: Logprobs = None
    truncation: str | None = None
    metadata: Anything | None = None
    user: str | None = None
    stream: bool | None = None
    previous_response_id: Annotated[str, Meta(max_length=0)] | None = None
    conversation: Annotated[str, Meta(max_length=0)] | None = None
    prompt: Annotated[Anything, Meta(max_length=0)] | None = None
    background: bool | None = None


class UsageTold(Struct):
    """What an answer took."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | UnsetType = UNSET
    prompt_tokens_details: Anything | UnsetType = UNSET


class ChatMessageTold(Struct):
    """What a model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[Anything] | UnsetType = UNSET
    function_call: Anything | UnsetType = UNSET


class ChatChoiceTold(Struct):
    """One of the answers."""

    index: int
    message: ChatMessageTold
    logprobs: Anything | None
    finish_reason: str


class ChatCompletionTold(Struct):
    """The answers to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoiceTold]
    usage: UsageTold


class CompletionChoiceTold(Struct):
    """One of the texts."""

    text: str
    index: int
    logprobs: Anything | None
    finish_reason: str
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class CompletionTold(Struct):
    """How the texts go on."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoiceTold]
    usage: UsageTold


class EmbeddingTold(Struct):
    """The vector of a text; a text is its float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsTold(Struct):
    """A vector for each text."""

    object: Literal["list"]
    data: list[EmbeddingTold]
    model: str
    usage: UsageTold


class ResponseTold(Struct):
    """What a model says, as items."""

    id: str
    object: Literal["response"]
    created_at: int
    status: str
    background: bool
    error: Anything | None
    incomplete_details: Anything | None
    model: str
    output: list[Anything]
    usage: Anything | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: Anything
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: Anything
    store: bool
    temperature: float | None
    text: Anything
    tool_choice: str | Anything
    tools: list[Anything]
    top_logprobs: int
    top_p: float | None
    truncation: str
    user: str | None


class OpenAiModel(Struct):
    """A model."""

    id: str
    object: Literal["model"]
    created: Annotated[int, Meta(ge=0)]
    owned_by: str


class OpenAiModels(Struct):
    """All of them."""

    object: Literal["list"]
    data: list[OpenAiModel]


class OtherModel(Struct):
    """A model, for those who speak Anthropic's API."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: str
    max_input_tokens: int | None
    max_tokens: int | None


class OtherModels(Struct):
    """A page of them."""

    data: list[OtherModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


class OtherProblem(Struct):
    """How they are told errors."""

    type: Literal["error"]
    error: dict[str, str]
    request_id: str


class ModelsQuery(Struct):
    """A page of the models, a number of them, for those who speak Anthropic's API."""

    limit: str | UnsetType = UNSET
    after_id: str | UnsetType = UNSET
    before_id: str | UnsetType = UNSET


def _either(kind: object) -> tuple[HttpReply, ...]:
    return (HttpReply(200, kind), HttpReply(200, None, EVENTS))


_PATHS: Final = {
    "anthropic-version": Annotated[
        str, Meta(description="Who sends it is answered as Anthropic's API does.")
    ]
}
OPENAI_CALLS: Final[AboutCalls] = {
    "GET /v1/models": AboutCall(
        what="The models.",
        query=ModelsQuery,
        headers=_PATHS,
        answers=(HttpReply(200, OpenAiModels), HttpReply(200, OtherModels)),
        problem_kinds=(OtherProblem,),
    ),
    "GET /v1/models/<path:model>": AboutCall(
        what="A model.",
        headers=_PATHS,
        answers=(HttpReply(200, OpenAiModel), HttpReply(200, OtherModel)),
        problem_kinds=(OtherProblem,),
    ),
    "POST /v1/chat/completions": AboutCall(
        what="A chat.", body=ChatCompletionBody, answers=_either(ChatCompletionTold)
    ),
    "POST /v1/completions": AboutCall(
        what="Texts to go on with.", body=CompletionBody, answers=_either(CompletionTold)
    ),
    "POST /v1/responses": AboutCall(
        what="A conversation.", body=ResponseBody, answers=_either(ResponseTold)
    ),
    "POST /v1/embeddings": AboutCall(
        what="Vectors of texts.", body=EmbeddingBody, answers=json_of(EmbeddingsTold)
    ),
}
