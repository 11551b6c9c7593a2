"""Vectors of texts, made by Ollama."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.ollama.bodies import Loading, embedding_body
from d8mesh.backends.ollama.chat import timing_of
from d8mesh.backends.ollama.connection import OllamaRequest, asking
from d8mesh.backends.ollama.faults import SERVICE, failed
from d8mesh.backends.streaming import clean_object, parts, whole_number
from d8mesh.core.protocol.chat import EmbeddingRequest, Embeddings, JsonObject, Timing, Usage
from d8mesh.errors import BackendAnswerError, BackendTooLargeError

#: Texts that are asked together. An answer comes whole, so this is how far its progress can be
#: seen, and how much is made in vain for who has cancelled.
BATCH_TEXTS: Final = 64
#: Of one answer: some 20 bytes for each number, 8,192 of them for each text, and more than that.
MAX_VECTOR_BYTES: Final = 24 * 1024 * 1024
#: Of all vectors of a request: nine bytes each, in a result of 32 MB.
MAX_NUMBERS: Final = 3_500_000
_VECTOR_FIELDS: Final = frozenset(
    {"embeddings", "load_duration", "model", "prompt_eval_count", "total_duration"}
)


@dataclass(frozen=True, slots=True)
class Vectors:
    """One answer: it comes whole."""

    rows: tuple[tuple[float, ...], ...]
    tokens: int = 0
    timing: Timing = field(default_factory=Timing)
    extra: JsonObject = field(default_factory=dict)
    ending: bool = True
    is_sign_of_life: bool = True


def embeddings(url: str, request: EmbeddingRequest, loading: Loading, run: ChatRun) -> Embeddings:
    """Ask the Ollama at `url`; each batch must come within `run.first_token_s`.

    Raises:
        TaskCancelledError: `run.is_cancelled` said so.
        BackendDeadlineError: not within `run.deadline_s`.
        BackendStalledError: nothing for `run.first_token_s`.
        BackendUnavailableError: it does not answer, or is busy.
        BackendError: it fails, or sends something else.
    """
    until = time.monotonic() + run.deadline_s
    made: list[Vectors] = []
    for texts in _batches(request.texts):
        body = embedding_body(request, texts, loading)
        left = replace(run, deadline_s=until - time.monotonic())
        made.append(asked_vectors(url, body, left))
        if sum(len(row) for each in made for row in each.rows) > MAX_NUMBERS:
            raise BackendTooLargeError(f"{SERVICE} sent more than {MAX_NUMBERS} numbers")
    return Embeddings(
        vectors=tuple(row for each in made for row in each.rows),
        model=loading.model,
        usage=Usage(sum(each.tokens for each in made)),
        timing=Timing(
            load_s=sum(each.timing.load_s for each in made),
            total_s=sum(each.timing.total_s for each in made),
        ),
        extra={name: value for each in made for name, value in each.extra.items()},
    )


def asked_vectors(url: str, body: dict[str, Any], run: ChatRun) -> Vectors:
    """Return the vectors of one request; as many as it has texts."""
    question = OllamaRequest(url=url, path="/api/embed", body=body, whole_bytes=MAX_VECTOR_BYTES)
    with contextlib.closing(parts(asking(question, _vectors_of), run)) as coming:
        made = next(coming)
    if len(made.rows) != len(body["input"]):
        raise BackendAnswerError(
            f"{SERVICE} sent {len(made.rows)} embeddings for {len(body['input'])} texts"
        )
    return made


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), BATCH_TEXTS):
        yield texts[start : start + BATCH_TEXTS]


def _vectors_of(answer: Any) -> Vectors:
    if answer.get("error") is not None:
        raise failed(str(answer["error"]))
    rows = tuple(tuple(map(float, row)) for row in answer["embeddings"])
    if not all(math.isfinite(number) for row in rows for number in row):
        raise BackendAnswerError(f"{SERVICE} made a vector of what is no number (NaN)")
    extra = clean_object({key: answer[key] for key in answer if key not in _VECTOR_FIELDS})
    return Vectors(rows, whole_number(answer.get("prompt_eval_count")), timing_of(answer), extra)
