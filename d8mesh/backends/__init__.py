"""One module per LLM service, and what may be asked of any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """What an LLM service offers now."""

    is_up: bool
    #: where it was found; "" if nowhere
    url: str = ""
    #: the models it offers for chats, in its order
    models: tuple[str, ...] = ()
    #: the one that runs what wishes for none
    default: str = ""
    #: those that are in memory: they answer without loading first; what is offered is the same
    loaded: tuple[str, ...] = field(default=(), compare=False)
    #: what each of them can do, by the service's words; empty where it does not tell
    capabilities: Mapping[str, frozenset[str]] = field(default_factory=dict)
    #: installed ones that are not offered, and why
    unfit: Mapping[str, str] = field(default_factory=dict)
    #: why it is not up, for people; "" if it is
    reason: str = ""
    #: what people should know and mend though it is up; "" if there is nothing
    warning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation to go on with; None leaves the choice to the backend."""

    #: objects with ``role``, ``content`` and what else a message of Ollama's may carry
    messages: tuple[Mapping[str, Any], ...]
    model: str | None = None
    #: no other model than `model` will do
    is_model_strict: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    #: how the model generates, by the names of Ollama's options
    options: Mapping[str, Any] = field(default_factory=dict)
    #: what else is handed on as it is: tools, format, think, …
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        """What the model must be capable of: ``vision``, ``tools``."""
        has_images = any(message.get("images") for message in self.messages)
        wanted = (("vision", has_images), ("tools", bool(self.more.get("tools"))))
        return frozenset(name for name, is_needed in wanted if is_needed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished answer."""

    text: str
    #: the model that really ran
    model: str
    #: what it thought before it answered, where the service tells that apart
    thinking: str = ""
    #: calls of tools that it asks for
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    #: of the tokens of the answer, if they were asked for
    logprobs: tuple[Any, ...] = ()
    #: of the question and the answer together
    tokens_used: int = 0
    #: seconds spent on loading the model, of all the time it took
    load_s: float = 0.0
    #: the answer ended because `max_tokens` were used up
    is_cut: bool = False


class Backend(Protocol):
    """An LLM service on this machine or elsewhere."""

    def probe(self) -> Availability:
        """Ask the service what it offers; never raises, takes a few seconds at most."""

    def chat(
        self,
        request: ChatRequest,
        *,
        on_text: Callable[[str], None],
        is_cancelled: Callable[[], bool],
        deadline_s: float,
        stall_s: float | None = None,
    ) -> Completion:
        """Return the answer to `request`, telling each piece of it as it comes.

        Args:
            request: the conversation; a model that is not offered is replaced, unless it is a
                must.
            on_text: called with each piece of text; what it raises ends the answer.
            is_cancelled: asked several times a second.
            deadline_s: seconds from now until the answer must be complete.
            stall_s: seconds without text that end it; None for the backend's own bounds.

        Raises:
            InvalidTaskError: the model is a must and not there, or lacks a capability that is
                needed.
            TaskCancelledError: `is_cancelled` said so.
            BackendUnavailableError: the service is down or busy; another may do it now.
            BackendError: the service failed; its subclasses say how.
        """
