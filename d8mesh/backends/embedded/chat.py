"""One chat or prompt with llama.cpp's server: what is asked, and what a line of its answer means.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from d8mesh.backends.embedded.process import ModelProcess
from d8mesh.backends.exchange import HttpQuestion, answer_to
from d8mesh.backends.streaming import (
    NOTHING_NOW,
    AnswerReader,
    PartT,
    RefusedAnswer,
    error_in,
    lines_of,
    rows_of,
    shown,
    text_of,
    whole_number,
)
from d8mesh.core.protocol.chat import (
    SOME_CALL,
    ChatRequest,
    Ending,
    FinishReason,
    JsonObject,
    Piece,
    Timing,
    Usage,
)
from d8mesh.errors import (
    BackendError,
    BackendTooLargeError,
    BackendUnavailableError,
    D8Error,
    InvalidTaskError,
)

#: What it is called in what people read.
LLAMA_CPP: Final = "llama.cpp"
#: Options of Ollama -> what llama.cpp calls them.
LLAMA_OPTIONS: Final[Mapping[str, str]] = {
    name: name
    for name in (
        "seed", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n", "repeat_penalty",
        "presence_penalty", "frequency_penalty", "stop", "mirostat", "mirostat_tau",
        "mirostat_eta",
    )
} | {"num_keep": "n_keep"}  # fmt: skip
#: Of `ChatRequest.more`, what llama.cpp takes in no form.
NOT_TAKEN_HERE: Final = ("min_tokens",)
_EVENT_DATA: Final = b"data:"
_FINISHES: Final = {"length": FinishReason.LENGTH, "tool_calls": FinishReason.TOOL_CALLS}
#: llama.cpp's word for a prompt that is longer than the model was loaded for.
_TOO_LONG: Final = b"exceed_context_size_error"


def asked(
    process: ModelProcess, request: ChatRequest, *, temperature: float, max_tokens: int
) -> AnswerReader[Piece]:
    """Begin an answer; the request's own temperature and bound go before."""
    own = (request.temperature, request.max_tokens)
    usual: dict[str, object] = {"temperature": temperature, "max_tokens": max_tokens}
    if request.has_model_defaults:
        usual = {"max_tokens": process.order.context}
    body: dict[str, object] = {
        **usual,
        **{
            name: value
            for name, value in zip(("temperature", "max_tokens"), own, strict=True)
            if value is not None
        },
        **({"logit_bias": request.more["logit_bias"]} if "logit_bias" in request.more else {}),
        "stream": True,
        "stream_options": {"include_usage": True},
        **{
            LLAMA_OPTIONS[name]: value
            for name, value in request.options.items()
            if name in LLAMA_OPTIONS
        },
    }
    prompt = request.prompt
    if prompt is not None and prompt.is_raw:
        path = "/v1/completions"
        body |= {"prompt": prompt.text, **_raw_form(request.more)}
    else:
        path = "/v1/chat/completions"
        body |= {"messages": [_message(each) for each in request.conversation]}
        body |= _chat_form(request.more)

    def lines(reader: AnswerReader[Piece]) -> Iterator[bytes]:
        for line in posted(process, path, body, reader):
            data = line.strip()
            if not data:
                yield NOTHING_NOW
            elif data.startswith(_EVENT_DATA):  # others are comments that keep the connection open
                yield data[len(_EVENT_DATA) :]

    return AnswerReader(
        LLAMA_CPP,
        process.url,
        lines=lines,
        piece_of=_Pieces().piece_of,
        refused=partial(refused, is_must=request.is_model_strict),
    )


def posted(
    process: ModelProcess,
    path: str,
    body: JsonObject,
    reader: AnswerReader[PartT],
    **bounds: int,
) -> Iterator[bytes]:
    """Yield the lines that answer a POST."""
    question = HttpQuestion(
        url=process.url + path, body=body, headers={"Authorization": f"Bearer {process.key}"}
    )
    with answer_to(question, reader) as response:
        yield from lines_of(LLAMA_CPP, response.chunks(), **bounds)


def refused(refusal: RefusedAnswer, *, is_must: bool) -> D8Error:
    """Return what another status than 200 means.

    A prompt that is too long may fit another model: where no other will do it is final.
    """
    said = _error_text(refusal.body)
    if _TOO_LONG in refusal.body:
        kind = InvalidTaskError if is_must else BackendTooLargeError
        return kind(f"longer than the context of the model here: {said}")
    if refusal.status == 400:
        return InvalidTaskError(f"{LLAMA_CPP} cannot answer this: {said}")
    if refusal.status in (429, 503):
        return BackendUnavailableError(f"{LLAMA_CPP} is busy ({said})")
    return BackendError(f"{LLAMA_CPP} failed (HTTP {refusal.status}: {said})")


def _error_text(body: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return shown(str(json.loads(body)["error"]["message"]))
    return error_in(body)


# --- what is asked --------------------------------------------------------------------


def _chat_form(more: JsonObject) -> dict[str, object]:
    """Return how the answer is to look, as llama.cpp's chats are told."""
    form: dict[str, object] = {}
    wished = more.get("format")
    if wished == "json":
        form["response_format"] = {"type": "json_object"}
    elif isinstance(wished, Mapping):
        form["response_format"] = {"type": "json_schema", "json_schema": {"schema": wished}}
    if more.get("tools"):
        form |= _tool_form(more)
    if "think" in more:
        form["chat_template_kwargs"] = {"enable_thinking": more["think"] is not False}
    if more.get("logprobs"):
        form |= {"logprobs": True, "top_logprobs": more.get("top_logprobs", 0)}
    return form


def _tool_form(more: JsonObject) -> dict[str, object]:
    """Return the tools and their choice; where one must be called it is the only one that is."""
    tools, choice = more["tools"], more.get("tool_choice")
    if isinstance(choice, Mapping) and isinstance(tools, Sequence):
        name = choice["function"]["name"]
        tools, choice = [each for each in tools if each["function"]["name"] == name], SOME_CALL
    told = {"tool_choice": choice, "parallel_tool_calls": more.get("parallel_tool_calls")}
    return {"tools": tools} | {name: value for name, value in told.items() if value is not None}


def _raw_form(more: JsonObject) -> dict[str, object]:
    form: dict[str, object] = {}
    wished = more.get("format")
    if wished == "json":
        form["json_schema"] = {"type": "object"}
    elif isinstance(wished, Mapping):
        form["json_schema"] = wished
    if more.get("logprobs"):
        form["logprobs"] = more.get("top_logprobs") or 1
    return form


def _message(message: JsonObject) -> dict[str, object]:
    """Return a message of Ollama's as OpenAI's, which llama.cpp takes."""
    kept = {"role": message.get("role"), "content": message.get("content") or ""}
    if calls := message.get("tool_calls"):
        kept["tool_calls"] = [
            _call(each, number)
            for number, each in enumerate(calls if isinstance(calls, list) else ())
        ]
    if message.get("role") == "tool":
        kept["tool_call_id"] = message.get("tool_call_id") or message.get("tool_name") or "call_0"
    return kept


def _call(call: Any, number: int) -> dict[str, object]:
    function = call.get("function") or {} if isinstance(call, Mapping) else {}
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return {
        "id": call.get("id") or f"call_{number}",
        "type": "function",
        "function": {"name": function.get("name"), "arguments": text},
    }


# --- what comes -----------------------------------------------------------------------


class _Pieces:
    """Makes pieces of the chunks of one answer: its calls come in parts, its end in two."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, str]] = {}
        self._reason = FinishReason.STOP

    def piece_of(self, chunk: Any) -> Piece:
        """Return what a chunk says; `TypeError` and the like if it is none."""
        if (error := chunk.get("error")) is not None:
            said = error.get("message") if isinstance(error, dict) else error
            raise BackendError(f"{LLAMA_CPP} failed ({shown(str(said))})")
        choices = rows_of(chunk.get("choices"))
        if not choices:
            return Piece(ending=self._ending(chunk))
        choice = choices[0]
        said = choice.get("delta") or {"content": choice.get("text")}
        for part in rows_of(said.get("tool_calls")):
            self._add(part)
        calls: tuple[JsonObject, ...] = ()
        if (reason := choice.get("finish_reason")) is not None:
            self._reason = _FINISHES.get(reason, FinishReason.STOP)
            calls = tuple(_whole(call) for _, call in sorted(self._calls.items()))
            self._calls = {}
        logprobs = choice.get("logprobs") or {}
        is_whole = reason is not None and chunk.get("usage") is not None  # not so after a chat
        return Piece(
            text_of(said.get("content")),
            text_of(said.get("reasoning_content")),
            calls,
            rows_of(logprobs.get("content")),
            self._ending(chunk) if is_whole else None,
        )

    def _add(self, part: Any) -> None:
        call = self._calls.setdefault(whole_number(part.get("index")), {})
        function = part.get("function") or {}
        for name, text in (("id", part.get("id")), *function.items()):
            if name in ("id", "name", "arguments"):
                call[name] = call.get(name, "") + text_of(text)

    def _ending(self, chunk: Any) -> Ending:
        usage, timings = chunk["usage"], chunk.get("timings") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), cached)
        prompt_s, output_s = (_seconds(timings.get(k)) for k in ("prompt_ms", "predicted_ms"))
        timing = Timing(prompt_s=prompt_s, output_s=output_s, total_s=prompt_s + output_s)
        return Ending(self._reason, Usage(*map(whole_number, counts)), timing)


def _whole(call: Mapping[str, str]) -> JsonObject:
    """Return a call in Ollama's form: its arguments are an object."""
    try:
        arguments = json.loads(call.get("arguments") or "{}")
    except ValueError:
        arguments = call.get("arguments")
    function = {"name": call.get("name", ""), "arguments": arguments}
    return {"id": call.get("id", ""), "function": function}


def _seconds(value: Any) -> float:
    return max(float(value), 0.0) / 1000 if isinstance(value, int | float) else 0.0
