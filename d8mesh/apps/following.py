"""One task from its submit to its result: its partial output as it comes, why nothing comes."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, Unpack

from d8mesh.apps.work import OLDEST_WAIT_S, SILENCE_S, Pending, reason_of
from d8mesh.edge.terminal import say, tell
from d8mesh.errors import D8Error, TaskRejectedError, WaitTimeoutError
from d8mesh.program import command_name
from d8mesh.words import tr, translated

if TYPE_CHECKING:
    from d8mesh.nodes.client.groups import SubmitOptions

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


class TaskListener:
    """Hears what happens to a task, and says it beside the output that it prints."""

    _is_in_line = False  #: the last line on the screen has not ended

    def accepted(self, task: Followed) -> None:
        """It is on the orchestrator's disk."""

    def piece(self, piece: Any) -> None:
        """A piece of partial output came."""

    def restarted(self) -> None:
        """The attempt failed and another one begins: what was heard is void."""
        self.end_line()
        tell(tr("that attempt failed: another one begins, what it printed is void"))

    def missed(self, count: int | None) -> None:
        """Here so many pieces are missing; None: nobody knows how many."""
        self.end_line()
        if count is None:
            tell(tr("a part of the output is missing here"))
        else:
            tell(tr("a part of the output is missing here ({count} pieces)", count=count))

    def silent(self, reason: str) -> None:
        """Nothing comes, for this reason."""
        self.end_line()
        tell_silence(reason)

    def print(self, text: str) -> None:
        """Print a part of the output, where the part before has ended."""
        if text:
            say(text, end="")
            self._is_in_line = not text.endswith("\n")

    def end_line(self) -> None:
        """Begin a new line, if the last one has not ended."""
        if self._is_in_line:
            say("")
            self._is_in_line = False


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

    def result(self, until: float | None, listener: TaskListener) -> Mapping[str, Any]:
        """Tell of what happens until the task has ended; return its result.

        Args:
            until: monotonic seconds when waiting is over; None waits for ever.
            listener: told on the caller's thread.

        Raises:
            WaitTimeoutError: `until` has come; the task goes on.
            TaskError: as of `Task.result`.
        """
        silence = Silence(self.task, until, listener.silent)
        accept(self.task, silence)
        listener.accepted(self.task)
        while True:
            try:
                piece = self._pieces.get(timeout=silence.look_s())
            except queue.Empty:
                silence.look()
                continue
            silence.heard()
            if piece is None:
                break
            _pass_on(piece[0], listener)
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
            return OLDEST_WAIT_S
        return max(0.0, min(OLDEST_WAIT_S, self._until - time.monotonic()))

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


def _pass_on(piece: object, listener: TaskListener) -> None:
    from d8mesh.nodes.client import RESTARTED, Missed  # slow to import; it is there by now

    if isinstance(piece, Missed):
        listener.missed(piece.count)
    elif piece is RESTARTED:
        listener.restarted()
    else:
        listener.piece(piece)
