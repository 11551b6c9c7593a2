"""Vectors of texts, made by Ollama."""

from __future__ import annotations

import http.client
from typing import Any, Final

from d8mesh.backends.ollama.catalogue import ask_json
from d8mesh.backends.ollama.chat import KEEP_ALIVE, SERVICE
from d8mesh.backends.streaming import said, whole_number
from d8mesh.core.protocol.chat import EmbeddingRequest, Embeddings, Usage
from d8mesh.errors import BackendAnswerError, BackendDeadlineError, BackendUnavailableError

#: A thousand texts of 1,024 numbers, 20 characters each; a result must hold it.
MAX_VECTOR_BYTES: Final = 24 * 1024 * 1024


def embeddings(url: str, request: EmbeddingRequest, *, model: str, within_s: float) -> Embeddings:
    """Ask the Ollama at `url`.

    Raises:
        BackendDeadlineError: not within `within_s` seconds.
        BackendUnavailableError: it does not answer.
        BackendAnswerError: it fails, or sends something else.
    """
    body: dict[str, Any] = {"keep_alive": KEEP_ALIVE, "model": model, "input": list(request.texts)}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    body |= request.more
    if within_s <= 0:
        raise BackendDeadlineError
    try:
        answer = ask_json(
            url, "/api/embed", within_s=within_s, body=body, max_bytes=MAX_VECTOR_BYTES
        )
    except TimeoutError as error:
        raise BackendDeadlineError(f"{SERVICE} made no embeddings: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise BackendUnavailableError(
            f"{SERVICE} does not answer at {url} ({said(error)})"
        ) from error
    try:
        vectors = tuple(tuple(map(float, row)) for row in answer["embeddings"])
        tokens = whole_number(answer.get("prompt_eval_count"))
    except (TypeError, LookupError, ValueError, AttributeError) as error:
        raise BackendAnswerError(f"{SERVICE} sent something that is no embedding") from error
    if len(vectors) != len(request.texts):
        raise BackendAnswerError(
            f"{SERVICE} sent {len(vectors)} embeddings for {len(request.texts)} texts"
        )
    return Embeddings(vectors=vectors, model=model, usage=Usage(tokens))
