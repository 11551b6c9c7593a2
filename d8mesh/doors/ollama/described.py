"""What each call of Ollama's door takes and answers, for `/openapi.json`.

Source: Ollama, ``api/types.go``; fields that are not named here are passed over and told of.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from d8mesh.handlers.chat_fields import MAX_DIMENSIONS, MAX_TOP_LOGPROBS
from d8mesh.handlers.message_fields import MAX_MESSAGES
from d8mesh.http.described import (
    LINES,
    NOT_HERE,
    PLAIN_TEXT,
    AboutCall,
    AboutCalls,
    HttpReply,
    json_of,
)
from d8mesh.setting_forms import MODEL_PATTERN

ModelName: TypeAlias = Annotated[str, Meta(pattern=rf"^\s*(?:{MODEL_PATTERN})\s*$")]
KeepAlive: TypeAlias = float | str | None
Think: TypeAlias = bool | Literal["low", "medium", "high", "max"] | None
TopLogprobs: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None
Format: TypeAlias = Literal["", "json"] | dict[str, Any] | None
Figure: TypeAlias = int | UnsetType


class OllamaProblem(Struct):
    """How errors are told."""

    error: str


class OllamaMessage(Struct):
    """One thing said."""

    role: Literal["system", "user", "assistant", "tool", "developer", "function"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaAsked(Struct, kw_only=True):
    """What a model is asked with, in whichever form."""

    model: ModelName
    format: Format = None
    keep_alive: KeepAlive = None
    logprobs: bool | None = None
    options: dict[str, Any] | None = None
    shift: bool | None = None
    stream: bool | None = True
    think: Think = None
    top_logprobs: TopLogprobs = None
    truncate: bool | None = None


class OllamaChat(OllamaAsked, kw_only=True):
    """A chat; without messages the model is loaded, or let go of."""

    messages: Annotated[list[OllamaMessage], Meta(max_length=MAX_MESSAGES)] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerate(OllamaAsked, kw_only=True):
    """A prompt; without one the model is loaded, or let go of."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    raw: bool | None = None
    images: list[str] | None = None
    context: list[int] | None = None


class OllamaEmbed(Struct):
    """Texts of which a model makes vectors."""

    model: ModelName
    input: str | list[str] | None = None
    dimensions: Annotated[int, Meta(ge=0, le=MAX_DIMENSIONS)] | None = None
    keep_alive: KeepAlive = None
    options: dict[str, Any] | None = None
    truncate: bool | None = None


class OllamaEmbeddings(Struct):
    """One text, in the older form."""

    model: ModelName
    prompt: str | None = None
    keep_alive: KeepAlive = None
    options: dict[str, Any] | None = None


class OllamaNamed(Struct):
    """A model; `name` is what older programs call it."""

    model: ModelName | None = None
    name: str | None = None


class OllamaPull(Struct):
    """A model that is to be installed."""

    model: ModelName | None = None
    name: str | None = None
    stream: bool | None = True


class OllamaCopy(Struct):
    """A model that is to have another name."""

    source: str


class OllamaText(Struct):
    """What a model says; of a chat in `message`, else in `response`. Figures of 0 are left out."""

    model: str
    created_at: str
    done: bool
    message: dict[str, Any] | UnsetType = UNSET
    response: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    done_reason: str | UnsetType = UNSET
    context: list[int] | UnsetType = UNSET
    tool_calls: list[dict[str, Any]] | UnsetType = UNSET
    logprobs: list[Any] | UnsetType = UNSET
    remote_model: str | UnsetType = UNSET
    remote_host: str | UnsetType = UNSET
    total_duration: Figure = UNSET
    load_duration: Figure = UNSET
    prompt_eval_count: Figure = UNSET
    prompt_eval_cached_count: Figure = UNSET
    prompt_eval_duration: Figure = UNSET
    eval_count: Figure = UNSET
    eval_duration: Figure = UNSET


class OllamaVectors(Struct):
    """A vector for each text."""

    model: str
    embeddings: list[list[float]]
    total_duration: Figure = UNSET
    load_duration: Figure = UNSET
    prompt_eval_count: Figure = UNSET


class OllamaVector(Struct):
    """The vector of one text."""

    embedding: list[float]


class OllamaDetails(Struct):
    """Of what kind a model is."""

    parent_model: str
    format: str
    family: str
    families: list[str] | None
    parameter_size: str
    quantization_level: str
    context_length: int | UnsetType = UNSET
    embedding_length: int | UnsetType = UNSET


class OllamaTag(Struct):
    """A model that may be asked."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails
    capabilities: list[str]
    remote_model: str | UnsetType = UNSET
    remote_host: str | UnsetType = UNSET


class OllamaTags(Struct):
    """All of them, the newest first."""

    models: list[OllamaTag]


class OllamaResident(Struct):
    """A model in memory."""

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str
    size_vram: int
    context_length: int


class OllamaResidents(Struct):
    """All of them."""

    models: list[OllamaResident]


class OllamaVersion(Struct):
    """Whose interface this is."""

    version: str


class OllamaCloud(Struct):
    """Ollama's cloud is not reached from here."""

    cloud: dict[str, Any]


class OllamaProgress(Struct):
    """A step of a pull."""

    status: str
    digest: str | UnsetType = UNSET
    total: int | UnsetType = UNSET
    completed: int | UnsetType = UNSET


def _streamed(kind: object) -> tuple[HttpReply, ...]:
    return (HttpReply(200, kind), HttpReply(200, kind, LINES))


OLLAMA_CALLS: Final[AboutCalls] = {
    "GET /": AboutCall(what="That something is here.", answers=(HttpReply(200, None, PLAIN_TEXT),)),
    "GET /api/version": AboutCall(what="Its version.", answers=json_of(OllamaVersion)),
    "GET /api/tags": AboutCall(what="The models.", answers=json_of(OllamaTags)),
    "GET /api/ps": AboutCall(what="Those in memory.", answers=json_of(OllamaResidents)),
    "GET /api/status": AboutCall(what="Ollama's cloud.", answers=json_of(OllamaCloud)),
    "POST /api/show": AboutCall(
        what="All that is known of a model.", body=OllamaNamed, answers=json_of(dict[str, Any])
    ),
    "POST /api/chat": AboutCall(what="A chat.", body=OllamaChat, answers=_streamed(OllamaText)),
    "POST /api/generate": AboutCall(
        what="A text to go on with.", body=OllamaGenerate, answers=_streamed(OllamaText)
    ),
    "POST /api/embed": AboutCall(
        what="Vectors of texts.", body=OllamaEmbed, answers=json_of(OllamaVectors)
    ),
    "POST /api/embeddings": AboutCall(
        what="The vector of a text.", body=OllamaEmbeddings, answers=json_of(OllamaVector)
    ),
    "POST /api/pull": AboutCall(
        what="Install a model.", body=OllamaPull, answers=_streamed(OllamaProgress)
    ),
    "DELETE /api/delete": AboutCall(
        what="Remove a model.", body=OllamaNamed, answers=json_of(None)
    ),
    "POST /api/copy": AboutCall(what="Refused.", body=OllamaCopy, answers=NOT_HERE),
    "POST /api/create": AboutCall(what="Refused.", answers=NOT_HERE),
    "POST /api/push": AboutCall(what="Refused.", answers=NOT_HERE),
    "GET /api/blobs/<digest>": AboutCall(what="There are none.", answers=NOT_HERE),
    "POST /api/blobs/<digest>": AboutCall(what="Refused.", answers=NOT_HERE),
    "POST /api/me": AboutCall(what="There is no account.", answers=NOT_HERE),
    "POST /api/signout": AboutCall(what="There is no account.", answers=NOT_HERE),
    "DELETE /api/user/keys/<path:key>": AboutCall(what="There is no account.", answers=NOT_HERE),
    "POST /api/experimental/<path:rest>": AboutCall(what="Refused.", answers=NOT_HERE),
}
