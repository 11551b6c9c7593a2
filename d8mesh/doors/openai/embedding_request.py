"""``POST /v1/embeddings``: texts of which a model makes vectors. Pure."""

from __future__ import annotations

from typing import Any, Final

from d8mesh.core.protocol.chat import LOAD_OPTIONS
from d8mesh.doors.llm.asked import LlmTask
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.completion_request import texts_of
from d8mesh.doors.openai.fields import RequestFields
from d8mesh.handlers.chat_fields import MAX_DIMENSIONS, embedding_request
from d8mesh.nodes.client.wishes import EMBED_TYPE

#: Texts of one request, as at OpenAI.
MAX_INPUTS: Final = 2048
#: Texts of one task: more are shared by the machines, and their vectors fit into a result.
TASK_INPUTS: Final = 256
BASE64: Final = "base64"
_ENCODINGS: Final = (None, "float", BASE64)


def asked_of_embedding(body: object) -> AskedOfModels:
    """Return what is to become vectors, in order.

    Raises:
        InvalidTaskError: a field is not what it must be, or cannot be done; names it.
    """
    fields = RequestFields(body)
    model = fields.required_text("model")
    texts = texts_of(fields, "input", most=MAX_INPUTS)
    encoding = fields.get("encoding_format")
    if encoding not in _ENCODINGS:
        raise fields.wrong("encoding_format", "float or base64")
    given: dict[str, Any] = {
        "dimensions": fields.whole("dimensions", low=1, high=MAX_DIMENSIONS),
        "truncate": fields.switch("truncate"),
        "keep_alive": fields.get("keep_alive"),
        "options": fields.mapping("options"),
    }
    loading = LOAD_OPTIONS & (given["options"] or {}).keys()
    more = {name: value for name, value in given.items() if value is not None}
    tasks: list[LlmTask] = []
    for start in range(0, len(texts), TASK_INPUTS):
        data = {"input": texts[start : start + TASK_INPUTS], **more}
        embedding_request({**data, "model": model})  # so that all that is wrong is told at once
        tasks.append(LlmTask(type=EMBED_TYPE, data=data, model=model))
    return AskedOfModels(
        tasks=tuple(tasks),
        model=model,
        is_base64=encoding == BASE64,
        ignored=(*fields.unread(), *(f"options.{name}" for name in sorted(loading))),
    )
