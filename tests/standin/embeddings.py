"""How the stand-in makes vectors."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from tests.standin import speech
from tests.standin.asked import Body, WrongRequestError, full_name, keep_alive_of, load_options_of
from tests.standin.faults import Fault, Kind
from tests.standin.generation import Course, meet_fault, note_cancelled
from tests.standin.http import Exchange
from tests.standin.machine import Model

if TYPE_CHECKING:
    from tests.standin.ollama import Ollama

NAN: Final = "failed to encode response: json: unsupported value: NaN"


async def embed(ollama: Ollama, exchange: Exchange, body: Body, *, is_old: bool) -> None:
    """Answer ``/api/embed`` or the old ``/api/embeddings``."""
    model = ollama.library.find(str(body.get("model", "")), is_old=is_old)
    texts = [str(body.get("prompt", ""))] if is_old else _texts(body.get("input"))
    texts = [] if is_old and not texts[0] else texts
    fault = ollama.faults.take(model.name)
    ollama.counters.prompts.extend((model.name, text) for text in texts)
    course = Course()
    try:
        await meet_fault(ollama, fault, str(body["model"]))
        vectors = await _vectors(ollama, body, model, texts, course)
    except asyncio.CancelledError:
        await note_cancelled(ollama, model.name, course, fault)
        raise
    _refuse_nan(fault)
    ollama.counters.answered[exchange.path] += 1
    if is_old:
        exchange.json({"embedding": vectors[0] if vectors else []})
        return
    told = {
        "model": body["model"],
        "embeddings": vectors,
        "total_duration": int((time.monotonic() - course.began) * 1e9),
        "load_duration": int(course.load_s * 1e9),
        "prompt_eval_count": sum(len(text.split()) for text in texts),
    }
    exchange.json({name: value for name, value in told.items() if value != 0})


def _texts(told: object) -> list[str]:
    if told is None or told == "":
        return []
    texts = [told] if isinstance(told, str) else told
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise WrongRequestError(400, "invalid input type")
    return texts


async def _vectors(
    ollama: Ollama, body: Body, model: Model, texts: list[str], course: Course
) -> list[list[float]]:
    told = keep_alive_of(body)
    keep_alive_s = ollama.settings.keep_alive_s if told is None else told
    name, options = full_name(str(body["model"])), load_options_of(body)
    async with ollama.machine.using(model, name, options, keep_alive_s) as resident:
        course.load_s = time.monotonic() - course.began
        if body.get("truncate") is False:
            _refuse_long(texts, resident.context_length)
        async with ollama.machine.slot(resident):
            course.phase = "prompt"
            rate = ollama.settings.prompt_tokens_per_s * ollama.settings.speed
            count = sum(len(text.split()) for text in texts)
            if rate:
                await asyncio.sleep(count / rate)
            dimensions = int(body.get("dimensions", speech.DIMENSIONS))
            return [speech.vector(text, dimensions) for text in texts]


def _refuse_long(texts: list[str], bound: int) -> None:
    if any(len(text.split()) > bound for text in texts):
        raise WrongRequestError(400, "the input length exceeds the context length")


def _refuse_nan(fault: Fault | None) -> None:
    if fault is not None and fault.kind is Kind.NAN:
        raise WrongRequestError(500, NAN)
