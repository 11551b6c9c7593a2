"""How the stand-in makes a text: load, slot, prompt, tokens at their pace, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Any, Final

from tests.standin import speech
from tests.standin.asked import Asked, WrongRequestError, full_name
from tests.standin.counters import Cancelled
from tests.standin.faults import Fault, Kind
from tests.standin.http import Exchange
from tests.standin.machine import Model

if TYPE_CHECKING:
    from tests.standin.ollama import Ollama

#: What `Kind.EMPTY` thinks where the request sets no bound.
EMPTY_TOKENS: Final = 32
#: Tokens written in one go before others have a turn, where there is no pace.
TURN_TOKENS: Final = 64
RUNNER_STOPPED: Final = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an "
    "internal error, check ollama server logs for details"
)
_quoted: Final = json.JSONEncoder().encode
#: Faults that come before anything else: status and text.
REFUSALS: Final = {
    Kind.BUSY: (503, "server busy, please try again.  maximum pending requests exceeded"),
    Kind.BUSY_500: (500, "llm busy - no slots available"),
    Kind.FAST_FAIL: (500, RUNNER_STOPPED),
    Kind.TOKEN_LOOP: (500, "prediction aborted, token repeat limit reached"),
}
#: Faults that come after some pieces.
BREAKS: Final = (Kind.STALL, Kind.CUT, Kind.NO_DONE, Kind.ERROR_LINE)


@dataclass(slots=True)
class Course:
    """How far a request has come."""

    began: float = field(default_factory=time.monotonic)
    phase: str = "queue"
    pieces: int = 0
    load_s: float = 0.0
    prompt_until: float = 0.0
    prompt_s: float = 0.0
    output_s: float = 0.0
    reason: str = "stop"


async def generate(ollama: Ollama, exchange: Exchange, asked: Asked) -> None:
    """Answer a chat or a generate."""
    model = ollama.library.find(asked.model)
    _refuse_incapable(model, asked)
    fault = ollama.faults.take(model.name)
    ollama.counters.prompts.append((model.name, asked.prompt))
    course = Course()
    try:
        await meet_fault(ollama, fault, asked.model)
        if fault is not None and fault.kind is Kind.NOT_JSON:
            exchange.whole(b"<html><b>Sign in</b></html>\n", content_type="text/html")
        elif not asked.messages:
            await _only_load(ollama, exchange, asked, model)
        else:
            await _run(ollama, exchange, asked, course, fault)
    except asyncio.CancelledError:
        await note_cancelled(ollama, model.name, course, fault)
        raise


async def meet_fault(ollama: Ollama, fault: Fault | None, name: str) -> None:
    """Let a fault happen that comes before anything is made."""
    kind = fault.kind if fault is not None else None
    if ollama.is_stuck or kind is Kind.SILENT:
        await asyncio.Event().wait()
    if kind is Kind.MISSING:
        raise WrongRequestError(404, f"model '{name}' not found")
    if kind is Kind.LOAD_FAIL:
        await asyncio.sleep(ollama.machine.load_s)
        raise WrongRequestError(500, RUNNER_STOPPED)
    if kind in REFUSALS:
        raise WrongRequestError(*REFUSALS[kind])


async def note_cancelled(ollama: Ollama, model: str, course: Course, fault: Fault | None) -> None:
    """Remember that a client left, and when."""
    if ollama.is_closing:
        return
    told = Cancelled(model, course.phase, course.pieces, time.monotonic())
    ollama.counters.cancelled.append(told)
    if fault is not None and fault.kind is Kind.STUCK_GPU and course.phase == "prompt":
        ollama.is_stuck = True


async def break_off(exchange: Exchange, fault: Fault, *, is_streamed: bool) -> None:
    """End, or do not end, an answer in its middle."""
    if fault.kind is Kind.STALL:
        await asyncio.Event().wait()
    elif fault.kind is Kind.CUT:
        exchange.cut()
    elif is_streamed:
        if fault.kind is Kind.ERROR_LINE:
            exchange.line({"error": RUNNER_STOPPED})
        exchange.end()
    else:
        exchange.json({"error": RUNNER_STOPPED}, status=500)


def _refuse_incapable(model: Model, asked: Asked) -> None:
    if model.is_embedder:
        what = "chat" if asked.is_chat else "generate"
        raise WrongRequestError(400, f'"{asked.model}" does not support {what}')
    if asked.tools and "tools" not in model.can:
        whole = f"registry.ollama.ai/library/{full_name(asked.model)}"
        raise WrongRequestError(400, f"{whole} does not support tools")
    if asked.think and "thinking" not in model.can:
        raise WrongRequestError(400, f'"{asked.model}" does not support thinking')
    if asked.suffix and "insert" not in model.can:
        raise WrongRequestError(400, f'"{asked.model}" does not support insert')


async def _only_load(ollama: Ollama, exchange: Exchange, asked: Asked, model: Model) -> None:
    keep_alive_s = _keep_alive(ollama, asked)
    if keep_alive_s == 0:
        ollama.machine.unload(model)
    else:
        name = full_name(asked.model)
        async with ollama.machine.using(model, name, asked.load_options, keep_alive_s):
            pass
    last = {"done": True, "done_reason": "load" if keep_alive_s else "unload"}
    exchange.json(_part(asked, ollama.now_text()) | last)


def _keep_alive(ollama: Ollama, asked: Asked) -> float:
    told = asked.keep_alive_s
    return ollama.settings.keep_alive_s if told is None else told


async def _run(
    ollama: Ollama, exchange: Exchange, asked: Asked, course: Course, fault: Fault | None
) -> None:
    machine, model = ollama.machine, ollama.library.find(asked.model)
    name, keep_alive_s = full_name(asked.model), _keep_alive(ollama, asked)
    async with machine.using(model, name, asked.load_options, keep_alive_s) as resident:
        course.load_s = time.monotonic() - course.began
        async with machine.slot(resident):
            try:
                await _read_prompt(ollama, asked, course)
                await _speak(ollama, exchange, asked, course, fault)
            except asyncio.CancelledError:
                if fault is not None and fault.kind is Kind.LATE_NOTICE:
                    await asyncio.sleep(max(0.0, course.prompt_until - time.monotonic()))
                raise


async def _read_prompt(ollama: Ollama, asked: Asked, course: Course) -> None:
    course.phase = "prompt"
    begun = time.monotonic()
    rate = ollama.settings.prompt_tokens_per_s * ollama.settings.speed
    if rate:
        course.prompt_until = begun + asked.prompt_tokens / rate
        await asyncio.sleep(asked.prompt_tokens / rate)
    course.prompt_s = time.monotonic() - begun


async def _speak(
    ollama: Ollama, exchange: Exchange, asked: Asked, course: Course, fault: Fault | None
) -> None:
    course.phase = "output"
    begun = time.monotonic()
    if asked.is_streamed:
        exchange.begin()
    said: list[dict[str, Any]] = []
    pace, lines = _Pace(ollama, begun), _Lines(asked)
    for part in _parts(ollama, asked, course, fault):
        if _is_due(fault, course):
            break
        await pace.next()
        course.pieces += 1
        ollama.counters.tokens += 1
        if asked.is_streamed:
            exchange.raw_line(lines.line(ollama.now_text(), part))
            if not exchange.is_drained:
                await exchange.drained()
        else:
            said.append(part)
    course.output_s = time.monotonic() - begun
    if fault is not None and fault.kind in BREAKS:
        if fault.kind is Kind.NO_DONE and not asked.is_streamed:
            exchange.json(_part(asked, ollama.now_text(), **_joined(said)) | {"done": False})
        else:
            await break_off(exchange, fault, is_streamed=asked.is_streamed)
        return
    last = _part(asked, ollama.now_text(), **_joined(said)) | _end(asked, course, fault)
    ollama.counters.answered[exchange.path] += 1
    if asked.is_streamed:
        exchange.line(last)
        exchange.end()
    else:
        exchange.json(last)


def _is_due(fault: Fault | None, course: Course) -> bool:
    return fault is not None and fault.kind in BREAKS and course.pieces >= fault.after


class _Lines:
    """Writes the lines before the last; those of plain text, which are most, at little cost."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        before, after = json.dumps(self._told("\0", {"content": "\0"})).split('"\\u0000"', 1)
        between, end = after.split('"\\u0000"')
        self._plain = (before, between, end)

    def line(self, now: str, part: dict[str, Any]) -> bytes:
        """Return one line, with the newline at its end."""
        if part.keys() != {"content"}:
            return json.dumps(self._told(now, part)).encode() + b"\n"
        before, between, end = self._plain
        return f'{before}"{now}"{between}{_quoted(part["content"])}{end}\n'.encode()

    def _told(self, now: str, part: dict[str, Any]) -> dict[str, Any]:
        return _part(self._asked, now, **part) | {"done": False}


class _Pace:
    """Waits until the next token is due; one that is late is made up for."""

    def __init__(self, ollama: Ollama, begun: float) -> None:
        self._settings = ollama.settings
        self._due = begun
        self._count = 0

    async def next(self) -> None:
        self._count += 1
        rate = self._settings.tokens_per_s * self._settings.speed
        if not rate:
            if self._count % TURN_TOKENS == 0:
                await asyncio.sleep(0)
            return
        self._due += 1 / rate
        left_s = self._due - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)


def _parts(
    ollama: Ollama, asked: Asked, course: Course, fault: Fault | None
) -> Iterator[dict[str, Any]]:
    """Yield what is said, token by token; the bound on tokens ends it with ``length``."""
    kind = fault.kind if fault is not None else None
    model = ollama.library.find(asked.model)
    bound = asked.max_tokens if asked.max_tokens > 0 else None
    if kind is Kind.EMPTY:
        course.reason = "length"
        thoughts = cycle(speech.pieces(speech.THOUGHT))
        return ({"thinking": each} for each in islice(thoughts, bound or EMPTY_TOKENS))
    if kind is Kind.ENDLESS:
        course.reason = "length"
        return ({"content": each} for each in islice(speech.endless(), bound))
    is_thinking = "thinking" in model.can and asked.think is not False
    thoughts_said = [{"thinking": each} for each in speech.pieces(speech.THOUGHT) if is_thinking]
    is_numbered = kind is not Kind.TOOL_INDEX
    called = speech.calls(asked.tools, asked.messages, is_numbered=is_numbered)
    if called:
        rest: list[dict[str, Any]] = [{"tool_calls": [each]} for each in called]
    else:
        text = ollama.settings.answer(asked.messages)
        if asked.format is not None:
            text = speech.structured(text, asked.format)
        rest = [_token(each, asked) for each in speech.pieces(text)]
    whole = list(chain(thoughts_said, rest))
    if bound is not None and len(whole) > bound:
        course.reason = "length"
    return islice(whole, bound)


def _token(text: str, asked: Asked) -> dict[str, Any]:
    if asked.top_logprobs is None:
        return {"content": text}
    return {"content": text, "logprobs": speech.logprobs(text, asked.top_logprobs)}


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = found[name] + value if name in found else value
    return found


def _part(asked: Asked, now: str, **said: Any) -> dict[str, Any]:
    """Return one line, without `done`."""
    part: dict[str, Any] = {"model": asked.model, "created_at": now}
    if "logprobs" in said:
        part["logprobs"] = said.pop("logprobs")
    content = said.pop("content", "")
    if asked.is_chat:
        return part | {"message": {"role": "assistant", "content": content} | said}
    return part | {"response": content} | said


def _end(asked: Asked, course: Course, fault: Fault | None) -> dict[str, Any]:
    is_reasonless = fault is not None and fault.kind is Kind.NO_REASON
    counts = {
        "total_duration": time.monotonic() - course.began,
        "load_duration": course.load_s,
        "prompt_eval_duration": course.prompt_s,
        "eval_duration": course.output_s,
    }
    told: dict[str, Any] = {"done": True, "done_reason": "" if is_reasonless else course.reason}
    told |= {name: int(value * 1e9) for name, value in counts.items() if int(value * 1e9)}
    told |= {"prompt_eval_count": asked.prompt_tokens, "eval_count": course.pieces}
    if not asked.is_chat and not asked.is_raw:
        told["context"] = list(range(asked.prompt_tokens))
    return {name: value for name, value in told.items() if value != 0 or name == "done"}
