"""Which of an Ollama's models answers a request, and why none does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from d8mesh.backends.backend import Availability, ModelInfo
from d8mesh.backends.ollama.catalogue import (
    IS_CLOUD,
    IS_EMBEDDING,
    is_cloud_name,
    is_embedding_name,
)
from d8mesh.core.protocol.chat import INSERT, TOOLS, VISION, ChatRequest
from d8mesh.core.protocol.model_names import matching
from d8mesh.errors import BackendError, BackendUnavailableError, InvalidTaskError

#: What a model cannot do without a capability.
_LACKS: Final = {
    INSERT: "cannot fill a gap before a suffix",
    TOOLS: "cannot call tools",
    VISION: "cannot see pictures and would pass over them in silence",
}
#: Of a model for chats that was asked for vectors.
NO_EMBEDDINGS: Final = "makes no embeddings"
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
#: Model names in one sentence.
MAX_NAMED: Final = 8


def steady(models: Sequence[str], details: Mapping[str, ModelInfo], before: str) -> str:
    """Return which of `models` answers where nobody said which: installing one changes it not.

    Args:
        before: the one that did so; as long as it is there it stays. Without one it is the
            oldest, which all workers that reach the service agree on.
    """
    if before in models:
        return before
    return min(models, key=lambda name: _changed_s(details.get(name)))


def _changed_s(info: ModelInfo | None) -> float:
    """Return when a model was changed; never, where that is not told."""
    try:
        told = datetime.fromisoformat(info.changed_at) if info is not None else None
    except ValueError:
        told = None
    if told is None:
        return math.inf
    aware = told if told.tzinfo else told.replace(tzinfo=UTC)
    return (aware - _EPOCH).total_seconds()  # `timestamp` asks the system, which has bounds


def placed(model: str, offer: Availability, *, is_embed: bool = False) -> str:
    """Return what the service calls the model that the broker chose.

    Raises:
        BackendUnavailableError: it cannot do that here, or has gone since; it may be elsewhere.
    """
    found = matching(model, offer.embedders if is_embed else offer.models)
    if found is not None:
        return found
    unfit = matching(model, tuple(offer.unfit))
    why = "" if unfit is None else offer.unfit[unfit]
    if is_embed and matching(model, offer.models) is not None:
        why = NO_EMBEDDINGS
    if why:
        raise BackendUnavailableError(f"the model {model!r} cannot run at {offer.url}: it {why}")
    raise BackendUnavailableError(f"the model {model!r} is no longer installed at {offer.url}")


def wished(request: ChatRequest, offer: Availability) -> str | None:
    """Return the first model offered of those that are wished for; None: there is none."""
    return next((found for name in request.models if (found := matching(name, offer.models))), None)


def chosen(request: ChatRequest, offer: Availability) -> str:
    """Return which model answers, where the broker did not choose.

    Raises:
        InvalidTaskError: it must be one that is not there, or is not capable of it.
        BackendError: none of them is capable of it.
    """
    found = wished(request, offer)
    if found is not None:
        if lacks := _lacks(found, request.needs, offer):
            raise InvalidTaskError(f"model: {found!r} {lacks}")
        return found
    if request.model and request.is_model_strict:
        _refuse_unfit(request.model, offer)
        raise InvalidTaskError(
            f"model_strict: the model {request.model!r} is not installed here, and no "
            f"worker of the mesh offers it; installed: {named(offer.models)}"
        )
    able = [n for n in (offer.default, *offer.models) if not _lacks(n, request.needs, offer)]
    if not able:
        lacks = _lacks(offer.default, request.needs, offer)
        raise BackendError(f"none of the models here will do: {offer.default!r} {lacks}")
    return able[0]


def named(models: Sequence[str]) -> str:
    """Return the names as they stand in a sentence."""
    more = f" and {len(models) - MAX_NAMED} more" if len(models) > MAX_NAMED else ""
    return ", ".join(models[:MAX_NAMED]) + more


def _lacks(name: str, needs: frozenset[str], offer: Availability) -> str:
    """Say what a model cannot do of what is needed; "" if it can, or does not tell."""
    has = offer.capabilities.get(name)
    missing = sorted(needs - has) if has else []
    return _LACKS[missing[0]] if missing else ""


def _refuse_unfit(requested: str, offer: Availability) -> None:
    """Say of a model that is a must why it can never answer here."""
    found = matching(requested, tuple(offer.unfit))
    why = "" if found is None else offer.unfit[found]
    if not why and is_cloud_name(requested):
        why = IS_CLOUD
    if not why and is_embedding_name(requested):
        why = IS_EMBEDDING
    if why:
        raise InvalidTaskError(
            f"model_strict: the model {requested!r} {why}; "
            f"models to chat with: {named(offer.models)}"
        )
