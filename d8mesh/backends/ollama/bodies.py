"""Requests in Ollama's form: what is asked of a model, and how it is loaded and kept for that.

A model is loaded anew by any change of its load options, also by leaving one out. So all
requests for one say the same: the options of the placement, and the context that it already has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from d8mesh.core.protocol.chat import ChatRequest, EmbeddingRequest, JsonObject, Prompt
from d8mesh.core.protocol.keep_alive import keep_alive_s

#: Ollama keeps the model loaded for so long after an answer: the next task finds it there.
KEEP_ALIVE: Final = "15m"
KEEP_FOR_EVER: Final = -1
_USUAL_KEPT_S: Final = 900.0
#: What is kept for so much longer was pinned by somebody: what we ask for, in whole seconds and
#: extended by answers that end, is not.
_PINNED_S: Final = 60.0
#: No answer is longer, whatever a task says: the longest contexts that machines of a LAN hold.
MOST_TOKENS: Final = 262_144


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What is asked when a task says nothing."""

    temperature: float = 0.7
    max_tokens: int = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How a model is loaded, and kept, for a request."""

    model: str
    #: of `LOAD_OPTIONS`
    options: JsonObject = field(default_factory=dict)
    #: how many more tasks wait for it
    waiting: int = 0
    #: how long it is kept as it is now; infinity: for ever
    kept_s: float = 0.0

    def kept(self, wished: object = None) -> object:
        """Return the ``keep_alive`` to send: while others wait no shorter one than the usual.

        The usual does not shorten what somebody pinned; a wish may.
        """
        wished_s = keep_alive_s(wished)
        if wished_s is not None and not (self.waiting and wished_s < _USUAL_KEPT_S):
            return wished
        if self.kept_s == math.inf:
            return KEEP_FOR_EVER
        return int(self.kept_s) if self.kept_s > _USUAL_KEPT_S + _PINNED_S else KEEP_ALIVE


def max_output_tokens(request: ChatRequest, defaults: Defaults) -> int:
    """Return the bound of the answer; there always is one."""
    usual = MOST_TOKENS if request.has_model_defaults else defaults.max_tokens
    return min(usual if request.max_tokens is None else request.max_tokens, MOST_TOKENS)


def question_of(
    request: ChatRequest, loading: Loading, defaults: Defaults
) -> tuple[str, dict[str, Any]]:
    """Return the path and the body that ask it, streamed: only so can an answer be ended."""
    options = {
        **request.options,
        **loading.options,
        "num_predict": max_output_tokens(request, defaults),
    }
    if request.temperature is not None or not request.has_model_defaults:
        own = request.temperature
        options["temperature"] = defaults.temperature if own is None else own
    body: dict[str, Any] = {
        **request.more,
        "model": loading.model,
        "keep_alive": loading.kept(request.more.get("keep_alive")),
        "options": options,
        "stream": True,
    }
    if request.prompt is not None:
        return "/api/generate", body | _prompted(request.prompt)
    return "/api/chat", body | {"messages": [dict(message) for message in request.messages]}


def embedding_body(
    request: EmbeddingRequest, texts: Sequence[str], loading: Loading
) -> dict[str, Any]:
    """Return the body that asks for the vectors of some of the request's texts."""
    body: dict[str, Any] = {
        **request.more,
        "model": loading.model,
        "input": list(texts),
        "keep_alive": loading.kept(request.more.get("keep_alive")),
    }
    if options := {**request.options, **loading.options}:
        body["options"] = options
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return body


def load_body(loading: Loading, keep_alive: object = None) -> dict[str, Any]:
    """Return the body that loads a model and asks nothing."""
    body = {"model": loading.model, "keep_alive": loading.kept(keep_alive), "stream": False}
    return body | ({"options": dict(loading.options)} if loading.options else {})


def _prompted(prompt: Prompt) -> dict[str, Any]:
    given = {
        "suffix": prompt.suffix or None,
        "images": list(prompt.images) or None,
        "system": prompt.system,
        "template": prompt.template,
        "context": list(prompt.context) or None,
        "raw": prompt.is_raw or None,
    }
    return {"prompt": prompt.text} | {k: v for k, v in given.items() if v is not None}
