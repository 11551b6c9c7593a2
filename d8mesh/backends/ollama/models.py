"""Models of an Ollama: brought into memory, pulled with progress, removed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from d8mesh.backends.backend import ChatRun, PullProgress
from d8mesh.backends.ollama.catalogue import IS_CLOUD, is_cloud_name
from d8mesh.backends.ollama.connection import OllamaRequest, asking
from d8mesh.backends.ollama.faults import SERVICE, failed, is_not_found
from d8mesh.backends.streaming import WANTED_LOOK_S, AnswerReader, parts, text_of, whole_number
from d8mesh.errors import BackendAnswerError, BackendError, InvalidTaskError, TaskCancelledError

#: A short answer that says no more than that it was done.
MAX_DONE_BYTES: Final = 1024 * 1024
#: No byte more for so long ends a download and begins it anew, where it stood. Ollama looks after
#: stalls by itself, but not after all; reading a large file again to verify it says nothing.
PULL_STALL_S: Final = 300.0
#: So many tries in a row that bring no byte are enough.
PULL_TRIES: Final = 4
#: Before the second try; twice as long before each further one.
PULL_PAUSE_S: Final = 1.0
REMOVE_S: Final = 60.0
#: Files of one model: more are none.
MAX_MODEL_FILES: Final = 1000


@dataclass(frozen=True, slots=True)
class Done:
    """An answer that says no more than that it was done."""

    ending: bool = True
    is_sign_of_life: bool = True


@dataclass(frozen=True, slots=True)
class PullLine:
    """One line about a model that is being pulled."""

    status: str
    digest: str
    completed_bytes: int
    total_bytes: int
    #: it has got further than any line before
    is_sign_of_life: bool

    @property
    def ending(self) -> bool:
        """True for the last line, and only if the model is there."""
        return self.status == "success"


def load(url: str, body: Mapping[str, Any], *, is_embedder: bool, within_s: float) -> None:
    """Bring a model into memory.

    Args:
        body: of `bodies.load_body`.

    Raises:
        BackendError: it does not come there.
    """
    path = "/api/generate"
    if is_embedder:
        body, path = {**body, "input": []}, "/api/embed"
    question = OllamaRequest(url=url, path=path, body=body, whole_bytes=MAX_DONE_BYTES)
    within = ChatRun(is_cancelled=lambda: False, deadline_s=within_s, first_token_s=within_s)
    _last(asking(question, _vectors_done if is_embedder else _loaded), within)


def unload(url: str, name: str, *, is_embedder: bool, within_s: float) -> None:
    """Have a model leave the memory, once nobody uses it.

    Raises:
        BackendError: that cannot be done now.
    """
    body = {"model": name, "keep_alive": 0, "stream": False}
    load(url, body, is_embedder=is_embedder, within_s=within_s)


def remove(url: str, name: str) -> None:
    """Delete a model from the disk.

    Raises:
        InvalidTaskError: it is not there.
        BackendError: it cannot be removed now.
    """
    question = OllamaRequest(
        url=url,
        path="/api/delete",
        body={"model": name},
        method="DELETE",
        whole_bytes=MAX_DONE_BYTES,
    )
    within = ChatRun(is_cancelled=lambda: False, deadline_s=REMOVE_S, first_token_s=REMOVE_S)
    try:
        _last(asking(question, _done), within)
    except BackendError as error:
        if is_not_found(error):
            raise InvalidTaskError(f"model: {name!r} is not installed at {url}") from error
        raise


def pull(
    url: str,
    name: str,
    on_progress: Callable[[PullProgress], None],
    is_cancelled: Callable[[], bool],
) -> None:
    """Install a model; what was loaded before a break is not loaded again.

    Raises:
        TaskCancelledError: `is_cancelled` said so.
        InvalidTaskError: there is no such model.
        BackendError: it cannot be had now.
    """
    if is_cloud_name(name):
        raise InvalidTaskError(f"model: {name!r} {IS_CLOUD}")
    pulled = _Pulled(on_progress)
    question = OllamaRequest(url=url, path="/api/pull", body={"model": name, "stream": True})
    run = ChatRun(
        is_cancelled=is_cancelled,
        deadline_s=math.inf,
        first_token_s=PULL_STALL_S,
        token_gap_s=PULL_STALL_S,
    )
    vain = 0
    while True:
        before = pulled.completed_bytes
        try:
            with contextlib.closing(parts(asking(question, pulled.line_of), run)) as coming:
                for line in coming:
                    pulled.tell(line)
            return
        except BackendError as error:
            if _is_for_good(str(error)):
                raise
            vain = 0 if pulled.completed_bytes > before else vain + 1
            if vain >= PULL_TRIES:
                raise
        _pause(PULL_PAUSE_S * 2 ** max(vain - 1, 0), is_cancelled)


class _Pulled:
    """How far a model has come, over all tries; it never goes back."""

    def __init__(self, on_progress: Callable[[PullProgress], None]) -> None:
        self._on_progress = on_progress
        #: by digest: bytes that have come, and all of them
        self._files: dict[str, tuple[int, int]] = {}
        self._status = ""

    @property
    def completed_bytes(self) -> int:
        return sum(completed for completed, _ in list(self._files.values()))

    def line_of(self, answer: Any) -> PullLine:
        """Return what a line says; raise the error that it tells. Thread: the reader's."""
        if (error := answer.get("error")) is not None:
            raise failed(str(error))
        status, digest = text_of(answer["status"]), text_of(answer.get("digest"))
        completed, total = (whole_number(answer.get(key)) for key in ("completed", "total"))
        is_further = status != self._status
        self._status = status
        if digest and (digest in self._files or len(self._files) < MAX_MODEL_FILES):
            before = self._files.get(digest, (0, 0))
            self._files[digest] = (max(before[0], completed), max(before[1], total))
            is_further |= self._files[digest] != before
        return PullLine(status, digest, completed, total, is_further)

    def tell(self, line: PullLine) -> None:
        files = list(self._files.values())
        total = sum(max(pair) for pair in files)
        self._on_progress(PullProgress(line.status, sum(pair[0] for pair in files), total))


def _last(reader: AnswerReader[Done], run: ChatRun) -> None:
    with contextlib.closing(parts(reader, run)) as coming:
        next(coming)


def _done(answer: Any) -> Done:
    return Done()


def _loaded(answer: Any) -> Done:
    if answer.get("error") is not None:
        raise failed(str(answer["error"]))
    if answer.get("done") is not True:
        raise BackendAnswerError(f"{SERVICE} did not say that it loaded the model")
    return Done()


def _vectors_done(answer: Any) -> Done:
    if answer.get("error") is not None:
        raise failed(str(answer["error"]))
    answer["embeddings"]  # without that it is another answer
    return Done()


def _is_for_good(text: str) -> bool:
    """Return whether trying again cannot help."""
    return "no space left" in text or "requires a newer version" in text


def _pause(seconds: float, is_cancelled: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if is_cancelled():
            raise TaskCancelledError
        time.sleep(min(WANTED_LOOK_S, max(until - time.monotonic(), 0)))
