"""What a service has: its list of models, and what each of them is for.

Lists tell little: most have a name and no more. What is not for chats is known by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from d8mesh.backends.backend import ModelInfo
from d8mesh.backends.openai.providers import Provider
from d8mesh.backends.streaming import whole_number
from d8mesh.core.protocol.chat import COMPLETION, EMBEDDING, TOOLS, VISION
from d8mesh.errors import BackendAnswerError
from d8mesh.setting_forms import MODEL_PATTERN

#: Models of one service that are looked at.
MAX_LISTED: Final = 500
NO_CHAT: Final = "is not for chats"
SWITCHED_OFF: Final = "is switched off by its provider"
#: Names of models for vectors, and of models for speech, pictures, moderation.
_VECTORS: Final = re.compile(r"embed|(?:\A|/)(?:bge|gte|e5|all-minilm|multilingual-e5)[-_]")
_NOT_FOR_CHATS: Final = re.compile(
    r"whisper|tts\b|-tts|orpheus|speech|audio|prompt-guard|llama-guard|rerank"
    r"|imagen|veo|lyria|\baqa\b|-image|-live|robotics|computer-use"
)
#: Whose list tells only what is on its disk, loaded or not; `LOAD_STATES` tells more of it.
_LM_STUDIO: Final = "organization_owner"
LOAD_STATES: Final = "/api/v0/models"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelList:
    """What a service has, in its order."""

    #: by the names that are told to others: what the service itself calls them
    ids: Mapping[str, str]
    chats: tuple[str, ...]
    embedders: tuple[str, ...]
    details: Mapping[str, ModelInfo]
    unfit: Mapping[str, str]
    #: `LOAD_STATES` would tell which of them are loaded
    has_load_states: bool


def model_list(
    provider: Provider, answer: Any, details_by_id: Mapping[str, Mapping[str, Any]]
) -> ModelList:
    """Return what is in the answer to ``/models``.

    Args:
        details_by_id: of `load_states`, where there is that; else empty.

    Raises:
        BackendAnswerError: it is no list of models.
    """
    ids: dict[str, str] = {}
    unfit: dict[str, str] = {}
    details: dict[str, ModelInfo] = {}
    rows = list(_rows(answer))
    for row in rows[:MAX_LISTED]:
        told = str(row["id"])
        name = _name(provider, told)
        if not re.fullmatch(MODEL_PATTERN, name) or name in ids:
            continue
        ids[name] = told
        why = _why_not(provider, row, name)
        if why:
            unfit[name] = why
        else:
            info = _info(row, name, details_by_id.get(told, {}))
            # In the cloud nothing is loaded for us: what wishes for no model gets the default.
            details[name] = replace(info, is_loaded=False) if provider.is_cloud else info
    embedders = tuple(name for name, info in details.items() if EMBEDDING in info.can)
    return ModelList(
        ids=ids,
        chats=tuple(name for name in details if name not in embedders),
        embedders=embedders,
        details=details,
        unfit=unfit,
        has_load_states=any(row.get("owned_by") == _LM_STUDIO for row in rows),
    )


def load_states(answer: Any) -> dict[str, Mapping[str, Any]]:
    """Return what LM Studio tells of its models, by id; empty if the answer is none of it."""
    rows = answer.get("data") if isinstance(answer, Mapping) else None
    return {
        str(row["id"]): row
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, Mapping) and row.get("id")
    }


def _rows(answer: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(answer, Mapping) or "data" not in answer:
        raise BackendAnswerError("the list of models has not the form of OpenAI's")
    rows = answer["data"] or ()  # some say null where there are none
    if not isinstance(rows, list | tuple):
        raise BackendAnswerError("the list of models has not the form of OpenAI's")
    for row in rows:
        if isinstance(row, Mapping) and isinstance(row.get("id"), str) and row["id"]:
            yield row


def _name(provider: Provider, told: str) -> str:
    """Return a name that can travel; llama.cpp may tell the path of a file."""
    name = told.removeprefix(provider.prefix)
    if re.fullmatch(MODEL_PATTERN, name):
        return name
    return re.split(r"[/\\]", name)[-1].removesuffix(".gguf").replace(" ", "-")


def _why_not(provider: Provider, row: Mapping[str, Any], name: str) -> str:
    if row.get("active") is False:
        return SWITCHED_OFF
    plain = name.lower()
    is_vectors = _VECTORS.search(plain) is not None
    if is_vectors and not provider.has_embeddings:
        return NO_CHAT
    return NO_CHAT if not is_vectors and _NOT_FOR_CHATS.search(plain) else ""


def _info(row: Mapping[str, Any], name: str, more: Mapping[str, Any]) -> ModelInfo:
    meta, status = row.get("meta"), row.get("status")
    told = status.get("value") if isinstance(status, Mapping) else more.get("state", "")
    files = meta if isinstance(meta, Mapping) else {}
    context = row.get("max_model_len") or row.get("context_window") or files.get("n_ctx")
    return ModelInfo(
        name=name,
        size_bytes=whole_number(files.get("size")),
        can=_can(name, more),
        is_loaded=told in ("", "loaded"),
        context_length=whole_number(context),
    )


def _can(name: str, more: Mapping[str, Any]) -> frozenset[str]:
    """Return what a model is capable of; empty where nobody tells."""
    kind, told = more.get("type"), more.get("capabilities")
    if kind == "embeddings" or _VECTORS.search(name.lower()):
        return frozenset({EMBEDDING})
    if kind not in ("llm", "vlm"):
        return frozenset()
    found = {COMPLETION} | ({VISION} if kind == "vlm" else set())
    return frozenset(found | ({TOOLS} if isinstance(told, list) and "tool_use" in told else set()))
