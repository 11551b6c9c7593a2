"""Several LLM services of one worker, as one."""

from __future__ import annotations

from collections.abc import Sequence

from d8mesh.backends.backend import Availability, Backend, ChatRun
from d8mesh.core.protocol.chat import ChatRequest, Completion, EmbeddingRequest, Embeddings
from d8mesh.core.protocol.model_names import matching


class Several:
    """Asks each request of the first backend that has its model, else of the first that is up.

    Args:
        backends: one or more, in order.

    Thread: any.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = list(backends)
        self._seen: list[Availability] = []

    @property
    def kind(self) -> str:
        """The names of all of them."""
        return "+".join(backend.kind for backend in self._backends)

    def probe(self) -> Availability:
        """Ask each what it offers; takes as long as all of them together."""
        self._seen = [backend.probe() for backend in self._backends]
        return together([backend.kind for backend in self._backends], self._seen)

    def chat(self, request: ChatRequest, run: ChatRun) -> Completion:
        """Return the answer of the backend that suits; see `Backend.chat`."""
        return self._suiting(request.model).chat(request, run)

    def embed(self, request: EmbeddingRequest, run: ChatRun) -> Embeddings:
        """Return the vectors of the backend that suits; see `Backend.embed`."""
        return self._suiting(request.model).embed(request, run)

    def _suiting(self, model: str | None) -> Backend:
        if not self._seen:
            self.probe()
        up = [pair for pair in zip(self._backends, self._seen, strict=True) if pair[1].is_up]
        for backend, seen in up:
            if matching(model or "", (*seen.models, *seen.embedders)):
                return backend
        return up[0][0] if up else self._backends[0]


def together(names: Sequence[str], seen: Sequence[Availability]) -> Availability:
    """Return what several services offer as one: each model once, in order of the services.

    Those that are down are no reason while another is up, but a warning.
    """
    up = [each for each in seen if each.is_up]
    told = [f"{n}: {each.reason}" for n, each in zip(names, seen, strict=True) if each.reason]
    warnings = [each.warning for each in up if each.warning]
    models = tuple(dict.fromkeys(model for each in up for model in each.models))
    return Availability(
        is_up=bool(up),
        url=", ".join(each.url for each in up if each.url),
        models=models,
        embedders=tuple(dict.fromkeys(model for each in up for model in each.embedders)),
        default=next((each.default for each in up if each.default), ""),
        loaded=tuple(dict.fromkeys(model for each in up for model in each.loaded)),
        capabilities={
            model: can for each in reversed(up) for model, can in each.capabilities.items()
        },
        unfit={
            model: why for each in seen for model, why in each.unfit.items() if model not in models
        },
        reason="" if up else "; ".join(told),
        warning="; ".join([*warnings, *told]) if up else "",
    )
