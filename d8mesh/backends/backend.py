"""What may be asked of any LLM service, and what one offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from d8mesh.core.protocol.chat import (
    ChatRequest,
    Completion,
    EmbeddingRequest,
    Embeddings,
    JsonObject,
    Origin,
    Piece,
)
from d8mesh.core.protocol.messages import Placement

#: Before the first token a large model may have to come from a slow disk.
FIRST_TOKEN_S: Final = 300.0
#: Seconds without a token in the middle of an answer: far slower than any model that fits.
TOKEN_GAP_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """One model of an LLM service."""

    #: as the service calls it
    name: str
    #: the same at all services that have the same files; "" where none is told
    digest: str = ""
    size_bytes: int = 0
    #: what it is capable of, in Ollama's words; empty: the service does not tell
    can: frozenset[str] = frozenset()
    #: it is in memory: it answers without loading first
    is_loaded: bool = False
    #: tokens that it was loaded for (``num_ctx``); 0: not loaded, or not told
    context_length: int = 0
    #: it stays in memory until then (monotonic seconds; infinity: for ever); 0: not told
    kept_until: float = field(default=0.0, compare=False)
    #: when its files changed, in the service's own form
    changed_at: str = ""
    #: what its list tells of it: family, format, sizes, in Ollama's words
    details: JsonObject = field(default_factory=dict, compare=False)
    #: tokens that it could be loaded for; 0: not told
    most_context: int = 0
    #: of it in the memory of a graphics card, while it is loaded
    vram_bytes: int = 0


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
    #: what is known of each model and each embedder, by name
    details: Mapping[str, ModelInfo] = field(default_factory=dict, compare=False)
    #: installed ones that are not offered, and why
    unfit: Mapping[str, str] = field(default_factory=dict)
    #: of the service's program; "" where it does not tell
    version: str = field(default="", compare=False)
    #: why it is not up, for people; "" if it is
    reason: str = ""
    #: what people should know and mend though it is up; "" if there is nothing
    warning: str = ""


def _unheard(piece: Piece) -> None:
    """Hear a piece and do nothing."""


def _unstarted(model: str, origin: Origin | None) -> None:
    """Hear who answers and do nothing."""


def _uncalled(call: Callable[[], None]) -> Callable[[], None]:
    """Call nothing: whether it is cancelled is looked at now and then."""
    return lambda: None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRun:
    """How a request is run: who hears the answer grow, how long it may take, and where."""

    #: called with each piece; what it raises ends the answer
    on_piece: Callable[[Piece], None] = _unheard
    #: called once, before the first piece: which model answers, and where if a pool was asked
    on_start: Callable[[str, Origin | None], None] = _unstarted
    #: asked several times a second
    is_cancelled: Callable[[], bool]
    #: given what is to be called, from any thread, when it is cancelled; returns what undoes that
    on_cancel: Callable[[Callable[[], None]], Callable[[], None]] = _uncalled
    #: seconds from now until the answer must be complete
    deadline_s: float
    #: seconds without anything that end it before the first token, and between two
    first_token_s: float = FIRST_TOKEN_S
    token_gap_s: float = TOKEN_GAP_S
    #: where the broker wants it to run, with which load options; None: it does not say
    placement: Placement | None = None


class LlmService(Protocol):
    """What answers requests: a backend, or a pool of them that chooses by `ChatRun.placement`."""

    def chat(self, request: ChatRequest, run: ChatRun) -> Completion:
        """Return the answer to `request`, telling each piece of it as it comes.

        Args:
            request: the conversation, or the prompt; a model that is not offered is replaced,
                unless it is a must, or a placement says which model runs.
            run: who hears it, and how long it may take.

        Raises:
            InvalidTaskError: the model is a must and not there, or lacks a capability that is
                needed; or the service can never answer this.
            TaskCancelledError: `run.is_cancelled` said so.
            BackendUnavailableError: the service is down or busy; another may do it now.
            BackendError: the service failed; its subclasses say how.
        """

    def embed(self, request: EmbeddingRequest, run: ChatRun) -> Embeddings:
        """Return a vector for each text.

        Args:
            request: the texts; its model is a must.
            run: how long it may take; there are no pieces.

        Raises:
            InvalidTaskError: the model is not there or makes no embeddings.
            TaskCancelledError: `run.is_cancelled` said so.
            BackendUnavailableError: the service is down or busy; another may do it now.
            BackendError: the service failed; its subclasses say how.
        """


class Backend(LlmService, Protocol):
    """An LLM service on this machine or elsewhere."""

    @property
    def kind(self) -> str:
        """What kind of service it is: its row in `BACKENDS`."""

    @property
    def is_cloud(self) -> bool:
        """Whether what it is asked leaves the LAN."""

    @property
    def url(self) -> str:
        """Where it is; "" if it has no address."""

    def probe(self) -> Availability:
        """Ask the service what it offers; never raises, takes a few seconds at most."""

    def check(self, model: ModelInfo, *, within_s: float) -> None:
        """Make `model` do what it is capable of, once: one token, or one vector.

        Raises:
            BackendError: it does not; its subclasses say how.
        """

    def load(
        self, model: str, options: JsonObject, *, within_s: float, keep_alive: object = None
    ) -> None:
        """Bring `model` into memory with these load options.

        Args:
            keep_alive: how long it is to stay there, where the service can be told; None: as usual.

        Raises:
            BackendError: it does not come there; its subclasses say how.
        """


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a model has come."""

    #: what is being done, in the service's words
    status: str
    #: of all files together; the first never goes back, the second may grow
    completed_bytes: int = 0
    total_bytes: int = 0


@runtime_checkable
class LetsGo(Protocol):
    """A service that lets go of a model when it is told to."""

    def unload(self, model: str, *, within_s: float) -> None:
        """Have `model` leave the memory, once nobody uses it.

        Raises:
            BackendError: that cannot be done now.
        """


@runtime_checkable
class Tells(Protocol):
    """A service that tells all of a model, in the form of Ollama's ``/api/show``."""

    def describe(self, model: str) -> JsonObject:
        """Return what it tells, bounded, without tokens and tensors.

        Raises:
            BackendError: it does not tell it now.
            OSError: nothing answers; so does `http.client.HTTPException`.
        """


class Managed(Protocol):
    """A service whose models can be pulled and removed."""

    def pull(
        self,
        name: str,
        on_progress: Callable[[PullProgress], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        """Install a model, or bring it up to date; what was loaded before is not loaded again.

        Raises:
            TaskCancelledError: `is_cancelled` said so.
            InvalidTaskError: there is no such model.
            BackendError: it cannot be had now.
        """

    def remove(self, name: str) -> None:
        """Delete a model from the service's disk.

        Raises:
            InvalidTaskError: there is no such model.
            BackendError: it cannot be removed now.
        """
