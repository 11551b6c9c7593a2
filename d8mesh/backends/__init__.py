"""One module per LLM service, and what may be asked of any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """What an LLM service offers now."""

    is_up: bool
    #: the models it offers, in its order
    models: tuple[str, ...] = ()
    #: those that are in memory: they answer without loading first
    loaded: tuple[str, ...] = ()
    #: why it is not up, for people; "" if it is
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation to go on with; None leaves the choice to the backend."""

    #: objects with the texts ``role`` and ``content``
    messages: tuple[Mapping[str, str], ...]
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished answer."""

    text: str
    #: the model that really ran
    model: str
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
            request: the conversation; a model that is not offered is replaced.
            on_text: called with each piece of text; what it raises ends the answer.
            is_cancelled: asked several times a second.
            deadline_s: seconds from now until the answer must be complete.
            stall_s: seconds without text that end it; None for the backend's own bounds.

        Raises:
            TaskCancelledError: `is_cancelled` said so.
            BackendUnavailableError: the service is down or busy; another may do it now.
            BackendError: the service failed; its subclasses say how.
        """
