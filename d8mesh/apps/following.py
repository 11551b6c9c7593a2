"""One task from its submit to its result: its partial output as it comes, why nothing comes."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Unpack

from d8mesh.apps.work import LOOK_S, SILENCE_S, Pending, reason_of
from d8mesh.edge.terminal import tell
from d8mesh.errors import D8Error, TaskRejectedError, WaitTimeoutError
from d8mesh.program import command_name
from d8mesh.words import tr, translated

if TYPE_CHECKING:
    from d8mesh.nodes.client.submissions import SubmitOptions

#: An orchestrator that is there acknowledges sooner; who leaves is not held up.
ACCEPTED_S: Final = 1.0


class Followed(Pending, Protocol):
    """A task that was submitted, and can be heard."""

    @property
    def id(self) -> str:
        """Its id."""

    def wait_accepted(self, timeout: float | None = None) -> None:
        """Wait until it is acknowledged."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the orchestrator said of it when it was acknowledged."""

    def stream(self, timeout: float | None = None) -> Iterable[Any]:
        """Yield its partial output, `RESTARTED` and `Missed` among it."""


class Submits(Protocol):
    """Something that takes tasks: a client."""

    def submit(
        self, kind: str, data: Mapping[str, Any], /, **options: Unpack[SubmitOptions]
    ) -> Followed:
        """Submit one task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskListeners:
    """Who is told what happens to a task."""

    #: it is on the orchestrator's disk
    on_accepted: Callable[[], None] = lambda: None
    #: a piece of partial output
    on_piece: Callable[[Any], None] = lambda piece: None
    #: the attempt failed and another one begins: what was heard is void
    on_restart: Callable[[], None] = lambda: None
    #: here so many pieces are missing; None: nobody knows how many
    on_missed: Callable[[int | None], None] = lambda count: None
    #: nothing comes, for this reason
    on_silence: Callable[[str], None] = lambda reason: None


class Following:
    """A task whose partial output is listened to from its submit on.

    Args:
        options: as `Client.submit` takes them.
    """

    def __init__(
        self, client: Submits, kind: str, data: Mapping[str, Any], **options: Unpack[SubmitOptions]
    ) -> None:
        options["listen"] = True  # from the first piece on, whenever the thread gets to it
        self.task = client.submit(kind, data, **options)
        self._pieces: queue.SimpleQueue[tuple[Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="follow", daemon=True).start()

    def result(self, until: float | None, listeners: TaskListeners) -> Mapping[str, Any]:
        """Tell of what happens until the task has ended; return its result.

        Args:
            until: monotonic seconds when waiting is over; None waits for ever.
            listeners: told on the caller's thread.

        Raises:
            WaitTimeoutError: `until` has come; the task goes on.
            TaskError: as of `Task.result`.
        """
        silence = Silence(self.task, until, listeners.on_silence)
        accept(self.task, silence)
        listeners.on_accepted()
        while True:
            try:
                piece = self._pieces.get(timeout=silence.look_s())
            except queue.Empty:
                silence.look()
                continue
            silence.heard()
            if piece is None:
                break
            _pass_on(piece[0], listeners)
        return wait(self.task, silence)

    def _listen(self) -> None:
        with contextlib.suppress(D8Error):  # the client was closed: nobody wants the rest
            for piece in self.task.stream():
                self._pieces.put((piece,))
        self._pieces.put(None)


class Silence:
    """Says why nothing comes, once for each reason, and when waiting is over."""

    def __init__(
        self, task: Followed, until: float | None, on_silence: Callable[[str], None]
    ) -> None:
        self._task, self._until, self._on_silence = task, until, on_silence
        self._reasons: set[str] = set()
        self.heard()

    def heard(self) -> None:
        """Note that something came."""
        self._at = time.monotonic()

    def look_s(self) -> float:
        """Return how long to wait for something before `look`."""
        if self._until is None:
            return LOOK_S
        return max(0.0, min(LOOK_S, self._until - time.monotonic()))

    def look(self) -> None:
        """Say why nothing comes, if it is time.

        Raises:
            WaitTimeoutError: waiting is over.
        """
        now = time.monotonic()
        is_over = self._until is not None and now >= self._until
        # Who waited shortly has not heard yet why.
        if now - self._at >= SILENCE_S or (is_over and not self._reasons):
            self._at = now
            reason = reason_of(self._task)
            if reason and reason not in self._reasons:
                self._reasons.add(reason)
                self._on_silence(reason)
        if is_over:
            raise WaitTimeoutError


def accept(task: Followed, silence: Silence) -> None:
    """Wait until a task is on the orchestrator's disk, and pass on what that warns of.

    Raises:
        TaskRejectedError: it was refused.
        WaitTimeoutError: waiting is over.
    """
    while True:
        try:
            task.wait_accepted(silence.look_s())
            break
        except WaitTimeoutError:
            silence.look()
    tell_warnings(task.warnings)


def tell_warnings(warnings: Iterable[str]) -> None:
    """Say what an orchestrator warns of, each thing once."""
    for warning in dict.fromkeys(warnings):
        tell(tr("warning: {why}", why=translated(warning)))


def wait(task: Followed, silence: Silence) -> Mapping[str, Any]:
    """Return a task's result; raises as `Following.result` does."""
    while True:
        try:
            return task.result(silence.look_s())
        except WaitTimeoutError:
            silence.look()


def tell_it_goes_on(task: Followed) -> None:
    """Say, to who stops waiting, that the task does not stop; or that it may not have begun."""
    task_id, program = task.id, command_name()
    try:
        task.wait_accepted(ACCEPTED_S)
    except TaskRejectedError:
        return  # who leaves is told so
    except D8Error:
        tell(tr("task {id} is not acknowledged yet; if it will be:", id=task_id))
    else:
        tell(tr("task {id} goes on without you:", id=task_id))
    tell("  " + tr("`{program} tasks show {id}` looks at it", program=program, id=task_id))
    tell("  " + tr("`{program} tasks cancel {id}` cancels it", program=program, id=task_id))


def tell_silence(reason: str) -> None:
    """Say why nothing comes."""
    tell(tr("still waiting: {why}", why=translated(reason)))


def missing_text(count: int | None) -> str:
    """Return in words that output is missing."""
    if count is None:
        return tr("a part of the output is missing here")
    return tr("a part of the output is missing here ({count} pieces)", count=count)


def _pass_on(piece: object, listeners: TaskListeners) -> None:
    from d8mesh.nodes.client import RESTARTED, Missed  # slow to import; it is there by now

    if isinstance(piece, Missed):
        listeners.on_missed(piece.count)
    elif piece is RESTARTED:
        listeners.on_restart()
    else:
        listeners.on_piece(piece)
