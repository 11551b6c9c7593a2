"""What may be asked of any LLM service, and what one offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from d8mesh.core.protocol.chat import ChatRequest, Completion, EmbeddingRequest, Embeddings, Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """What an LLM service offers now."""

    is_up: bool
    #: where it was found; "" if nowhere
    url: str = ""
    #: the models it offers for chats, in its order
    models: tuple[str, ...] = ()
    #: those that make vectors of texts
    embedders: tuple[str, ...] = ()
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
class ChatRun:
    """Who hears an answer while it grows, and how long it may take."""

    #: called with each piece; what it raises ends the answer
    on_piece: Callable[[Piece], None]
    #: asked several times a second
    is_cancelled: Callable[[], bool]
    #: seconds from now until the answer must be complete
    deadline_s: float
    #: seconds without text that end it; None for the backend's own bounds
    stall_s: float | None = None


class Backend(Protocol):
    """An LLM service on this machine or elsewhere."""

    @property
    def name(self) -> str:
        """What the service is called: its row in `BACKENDS`."""

    def probe(self) -> Availability:
        """Ask the service what it offers; never raises, takes a few seconds at most."""

    def chat(self, request: ChatRequest, run: ChatRun) -> Completion:
        """Return the answer to `request`, telling each piece of it as it comes.

        Args:
            request: the conversation; a model that is not offered is replaced, unless it is a
                must.
            run: who hears it, and how long it may take.

        Raises:
            InvalidTaskError: the model is a must and not there, or lacks a capability that is
                needed.
            TaskCancelledError: `run.is_cancelled` said so.
            BackendUnavailableError: the service is down or busy; another may do it now.
            BackendError: the service failed; its subclasses say how.
        """

    def embed(self, request: EmbeddingRequest, *, deadline_s: float) -> Embeddings:
        """Return a vector for each text.

        Args:
            request: the texts; its model is a must.
            deadline_s: seconds from now until they must be there.

        Raises:
            InvalidTaskError: the model is not there or makes no embeddings.
            BackendUnavailableError: the service is down or busy; another may do it now.
            BackendError: the service failed; its subclasses say how.
        """
