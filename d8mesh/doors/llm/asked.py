"""What a request at a door asks of language models, and who asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from d8mesh.core.protocol.chat import Completion, Embeddings, Origin
from d8mesh.core.protocol.wish import INTERACTIVE_PRIORITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and how: the same for every task of a request."""

    #: the door's name: ollama, openai, anthropic, batches
    door: str
    #: where the request came from
    address: str
    #: the program, as its User-Agent names it
    program: str = ""
    #: 1 to 10
    priority: int = INTERACTIVE_PRIORITY
    #: the request's Idempotency-Key; "" if it has none
    key: str = ""
    #: the id of the access token that was shown; "" for none
    token: str = ""
    #: models that may answer too, in order, if the one asked for cannot: only the caller names them
    fallbacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmTask:
    """One task that a request asks for."""

    #: the task's type: agent_action, generate, embed, model_load, …
    type: str
    #: its data in the words of that type; who may run it is added from `model`
    data: Mapping[str, Any]
    #: as the caller spells it: what is answered repeats it
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmAnswer:
    """How a task of a request ended well."""

    task_id: str
    model: str  #: as the caller spelled it
    #: what was said, or the vectors; None for a task of another kind
    completion: Completion | None = None
    embeddings: Embeddings | None = None
    #: the task's whole result
    result: Mapping[str, Any]

    @property
    def origin(self) -> Origin | None:
        """Who answered."""
        said = self.completion or self.embeddings
        return None if said is None else said.origin
