"""What each call of Anthropic's door takes and answers, for `/openapi.json`.

Source: Anthropic's API reference; fields that are not named here have no effect and are told of.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from d8mesh.doors.anthropic.message_request import MAX_TOP_K
from d8mesh.handlers.chat_fields import MAX_TEMPERATURE, MAX_TOKENS
from d8mesh.http.described import EVENTS, NOT_HERE, AboutCall, AboutCalls, HttpReply

Object: TypeAlias = dict[str, Any]
Portion: TypeAlias = Annotated[float, Meta(ge=0, le=1)] | None


class AnthropicFault(Struct):
    """What went wrong."""

    type: str
    message: str


class AnthropicProblem(Struct):
    """How errors are told."""

    type: Literal["error"]
    error: AnthropicFault
    request_id: str


class AnthropicMessage(Struct):
    """One thing said."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Object] | None = None


class MessageBody(Struct, kw_only=True):
    """What a model is to answer."""

    model: Annotated[str, Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    messages: Annotated[list[AnthropicMessage], Meta(min_length=1)]
    system: str | list[Object] | None = None
    temperature: Annotated[float, Meta(ge=0, le=MAX_TEMPERATURE)] | None = None
    top_p: Portion = None
    top_k: Annotated[int, Meta(ge=0, le=MAX_TOP_K)] | None = None
    stop_sequences: list[Annotated[str, Meta(min_length=1)]] | None = None
    stream: bool | None = None
    thinking: Object | None = None
    tools: list[Object] | None = None
    tool_choice: Object | None = None
    output_config: Any = None
    output_format: Object | None = None
    cache_control: Any = None
    mcp_servers: Annotated[list[Object], Meta(max_length=0)] | None = None


class MessageUsage(Struct):
    """What it took."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageTold(Struct):
    """What a model says, as blocks."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Object]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


_BATCHES_NOT_HERE: Final = AboutCall(what="There are no batches of messages.", answers=NOT_HERE)
ANTHROPIC_CALLS: Final[AboutCalls] = {
    "POST /v1/messages": AboutCall(
        what="A message.",
        body=MessageBody,
        answers=(HttpReply(200, MessageTold), HttpReply(200, None, EVENTS)),
    ),
    "POST /v1/messages/count_tokens": AboutCall(what="Tokens are not counted.", answers=NOT_HERE),
    "POST /v1/messages/batches": _BATCHES_NOT_HERE,
    "GET /v1/messages/batches": _BATCHES_NOT_HERE,
    "GET /v1/messages/batches/<path:inner>": _BATCHES_NOT_HERE,
    "POST /v1/messages/batches/<path:inner>": _BATCHES_NOT_HERE,
    "DELETE /v1/messages/batches/<path:inner>": _BATCHES_NOT_HERE,
}
