"""An LLM service without a process: it does what its attributes say."""

from __future__ import annotations

import threading
from collections.abc import Callable

from d8mesh.backends.backend import Availability, ChatRun, ModelInfo, PullProgress
from d8mesh.core.protocol.chat import (
    ChatRequest,
    Completion,
    EmbeddingRequest,
    Embeddings,
    Ending,
    JsonObject,
    Piece,
    Timing,
    Usage,
)

TOLD = Ending(usage=Usage(10, 20), timing=Timing(prompt_s=0.1, output_s=2.0))


def up(
    *models: str, embedders: tuple[str, ...] = (), url: str = "", **more: object
) -> Availability:
    names = (*models, *embedders)
    return Availability(
        is_up=bool(models),
        url=url,
        models=models,
        default=models[0] if models else "",
        embedders=embedders,
        details={name: ModelInfo(name=name, digest=f"sha-{name}") for name in names},
        **more,  # type: ignore[arg-type]
    )


DOWN = Availability(is_up=False, reason="it is off")


class ScriptedBackend:
    """Answers with its own address; `fails` is raised instead, `waits` is waited for first."""

    is_cloud = False

    def __init__(self, url: str, seen: Availability, *, kind: str = "ollama") -> None:
        self.url, self.seen, self.kind = url, seen, kind
        self.fails: BaseException | None = None
        self.check_fails: BaseException | None = None
        self.waits: threading.Event | None = None
        self.probe_waits: threading.Event | None = None
        self.probe_fails: BaseException | None = None
        self.check_waits: threading.Event | None = None
        self.checked_within_s = 0.0
        self.ending = TOLD
        self.asked: list[ChatRun] = []
        self.checked: list[str] = []
        self.loaded: list[tuple[str, JsonObject]] = []
        self.probes = 0

    def probe(self) -> Availability:
        self.probes += 1
        if self.probe_waits is not None:
            self.probe_waits.wait(30)
        if self.probe_fails is not None:
            raise self.probe_fails
        return self.seen

    def chat(self, request: ChatRequest, run: ChatRun) -> Completion:
        self._begin(run)
        run.on_piece(Piece(self.url))
        if self.waits is not None:
            self.waits.wait(30)
        model = run.placement.model if run.placement else request.model or self.seen.default
        return Completion(text=self.url, model=model, ending=self.ending)

    def embed(self, request: EmbeddingRequest, run: ChatRun) -> Embeddings:
        self._begin(run)
        return Embeddings(
            vectors=((1.0,),) * len(request.texts), model=request.model, usage=Usage(10)
        )

    def check(self, model: ModelInfo, *, within_s: float) -> None:
        self.checked.append(model.name)
        self.checked_within_s = within_s
        if self.check_waits is not None:
            self.check_waits.wait(600)
        if self.check_fails is not None:
            raise self.check_fails

    def load(
        self, model: str, options: JsonObject, *, within_s: float, keep_alive: object = None
    ) -> None:
        if self.fails is not None:
            raise self.fails
        self.loaded.append((model, options))

    def _begin(self, run: ChatRun) -> None:
        self.asked.append(run)
        if self.fails is not None:
            raise self.fails


class ManagedBackend(ScriptedBackend):
    """One whose models can be pulled, in the steps of `steps`, and removed."""

    steps: tuple[PullProgress, ...] = (
        PullProgress("pulling manifest"),
        PullProgress("pulling abc", 10, 1000),
        PullProgress("success", 1000, 1000),
    )

    def pull(
        self,
        name: str,
        on_progress: Callable[[PullProgress], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        if self.waits is not None:
            self.waits.wait(30)
        for step in self.steps:
            on_progress(step)
        self.seen = up(*self.seen.models, name, url=self.url)

    def remove(self, name: str) -> None:
        self.seen = up(*(each for each in self.seen.models if each != name), url=self.url)


def run_at(**more: object) -> ChatRun:
    return ChatRun(is_cancelled=lambda: False, deadline_s=30.0, **more)  # type: ignore[arg-type]


def question(model: str | None = None) -> ChatRequest:
    return ChatRequest(messages=({"role": "user", "content": "hello there"},), model=model)


def texts(model: str) -> EmbeddingRequest:
    return EmbeddingRequest(texts=("a", "b"), model=model)
