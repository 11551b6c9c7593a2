"""One chat with Ollama: what is asked, and what a line of its answer means.

The ``ollama`` package gives the connection. Its own reading and writing of messages is passed
by: it splits lines at U+2028 and the like, which may stand inside a text, reads images from files
of this machine if they are called like one, and drops fields that it does not know.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from d8mesh.backends.streaming import (
    CONNECT_S,
    AnswerReader,
    lines_of,
    rows_of,
    said,
    shown,
    text_of,
    whole_number,
)
from d8mesh.core.protocol.chat import ChatRequest, Ending, FinishReason, Piece, Usage
from d8mesh.errors import BackendError

if TYPE_CHECKING:
    import httpx

#: What it is called in what people read.
SERVICE: Final = "Ollama"
#: Ollama keeps the model loaded for so long after an answer: the next task finds it there.
KEEP_ALIVE: Final = "15m"


def asked(
    url: str, request: ChatRequest, *, model: str, temperature: float, max_tokens: int
) -> AnswerReader[Piece]:
    """Begin a chat with `model` at `url`; the request's own temperature and bound go before."""
    own = (request.temperature, request.max_tokens)
    options = dict(request.options)
    options["temperature"] = temperature if own[0] is None else own[0]
    options["num_predict"] = max_tokens if own[1] is None else own[1]
    body: dict[str, Any] = {
        "keep_alive": KEEP_ALIVE,
        **request.more,
        "model": model,
        "messages": [dict(message) for message in request.messages],
        "options": options,
        "stream": True,
    }

    def lines(reader: AnswerReader[Piece]) -> Iterator[bytes]:
        try:
            import httpx
            from ollama import Client
        except Exception as error:  # whatever an import may raise: it must not do so unheard
            raise BackendError(f"the ollama package cannot be imported ({said(error)})") from error
        hooks = reader.hooks
        hooks["request"].append(_without_key)
        client = Client(
            url,
            follow_redirects=False,
            trust_env=False,
            verify=url.startswith("https"),
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            event_hooks=hooks,
        )
        with contextlib.closing(client):
            http: httpx.Client = client._client
            with http.stream("POST", "/api/chat", json=body) as response:
                yield from lines_of(SERVICE, response.iter_raw())

    return AnswerReader(SERVICE, url, lines=lines, piece_of=_piece_of)


def _without_key(request: httpx.Request) -> None:
    request.headers.pop("authorization", None)  # the package adds OLLAMA_API_KEY by itself


def _piece_of(answer: Any) -> Piece:
    """Return one line of an answer; `TypeError` and the like if it is none."""
    if (error := answer.get("error")) is not None:
        raise BackendError(f"{SERVICE} failed ({shown(str(error))})")
    message = answer["message"]
    text, thinking = text_of(message.get("content")), text_of(message.get("thinking"))
    calls = rows_of(message.get("tool_calls"))
    if not all(isinstance(call, dict) for call in calls):
        raise TypeError("a call of a tool is no object")
    logprobs = rows_of(answer.get("logprobs"))
    ending = None
    if answer.get("done") is True:
        is_cut = answer.get("done_reason") == "length"
        ending = Ending(
            FinishReason.LENGTH if is_cut else FinishReason.STOP,
            Usage(*(whole_number(answer.get(key)) for key in ("prompt_eval_count", "eval_count"))),
        )
    return Piece(text, thinking, calls, logprobs, ending)
