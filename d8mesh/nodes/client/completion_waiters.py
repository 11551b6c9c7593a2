"""Where callers' threads wait for what happens to submissions, and for room to submit more."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.messages import Refused
from d8mesh.edge.logs import event
from d8mesh.errors import D8Error, NodeClosedError, error_of
from d8mesh.nodes.client.reasons import Reason
from d8mesh.nodes.client.timeouts import bounded, timed_out

#: Tasks and bytes that may wait here to be acknowledged; beyond it `submit` blocks.
MAX_PENDING_TASKS: Final = 50_000
MAX_PENDING_BYTES: Final = 64 * 1024 * 1024
#: When nothing has come for so long, it is said in the log, once until something comes.
QUIET_S: Final = 5.0
#: A wait shorter than this is a look: why nothing has come is not asked for.
LOOKS_S: Final = 0.1
#: Refused submissions that are remembered until somebody is told.
MAX_REFUSED: Final = 10_000
#: Waiting threads look around this often, whatever happens: an endless wait hears no Ctrl-C
#: on Windows.
LOOK_AROUND_S: Final = 1.0

_log: Final = logging.getLogger("d8mesh.client")


class CompletionWaiters:
    """Counts what is not yet acknowledged, and wakes who waits.

    Args:
        check_alive: raises when waiting has become useless.
        why: says why a task (an empty id: what is submitted) is not further; takes a short time.
        on_change: called when something of a submission has changed, beside those who wait here.

    Thread: `settled` and `changed` are called by the I/O thread, the rest by any.
    """

    def __init__(
        self,
        check_alive: Callable[[], None],
        why: Callable[[str], Reason] = lambda task_id: Reason(""),
        *,
        on_change: Callable[[Submission], None] | None = None,
    ) -> None:
        self._on_change = on_change
        #: raises, too, when it is called by the thread that brings what is waited for
        self.check_may_wait = check_alive
        self.check_alive, self.why = check_alive, why
        self.lock = threading.RLock()
        self._room = threading.Condition(self.lock)
        self._tasks = self._bytes = 0
        self._pending: dict[Submission, None] = {}  #: in their order
        self._waiters: dict[Submission, _Waiters] = {}
        self._refusal: Refused | None = None  #: the first since the last flush
        self._refused: list[Submission] = []  #: some of them are told by now
        #: refused tasks of which nobody was told and that are no longer remembered
        self.forgotten = 0
        self._is_shut = False
        #: when something came last, and when it was last said that nothing does (monotonic)
        self._moved_at, self._said_at = 0.0, -1.0

    @property
    def waiting(self) -> int:
        """How many submissions are waited for."""
        return len(self._waiters)

    @property
    def count(self) -> int:
        """How many tasks are not acknowledged."""
        with self.lock:
            return sum(submission.count for submission in self._pending)

    def unacknowledged(self) -> tuple[list[str], list[Refused]]:
        """Return the ids of what is not acknowledged, and of what was refused and nobody was told.

        The second list has what the refused ones among them were refused with.
        """
        with self.lock:
            untold = [submission for submission in self._refused if not submission.is_told]
            submissions = sorted([*self._pending, *untold], key=lambda submission: submission.first)
            ids = [
                submission.task_id(n) for submission in submissions for n in range(submission.count)
            ]
        return ids, [submission.refusal for submission in untold if submission.refusal is not None]

    # ------------------------------------------------------- under the lock, by callers

    def add(self, submission: Submission) -> None:
        """Note a new submission; its outcomes can arrive from now on."""
        self._pending[submission] = None

    def wait_for_room(self, count: int, size_bytes: int, timeout_s: float | None) -> None:
        """Wait until so much fits, and count it as pending.

        Raises:
            WaitTimeoutError: it did not fit within `timeout_s`.
            NodeClosedError: nothing more is taken.
        """
        tasks, size = self._tasks + count, self._bytes + size_bytes
        is_free = tasks <= MAX_PENDING_TASKS and size <= MAX_PENDING_BYTES  # nearly always
        if not (is_free or self.has_room(count, size_bytes)):
            self._wait(
                self._room,
                lambda: self.has_room(count, size_bytes) or self._is_shut,
                timeout_s,
                "room for more tasks",
            )
        else:
            self.check_alive()
        if self._is_shut:
            raise NodeClosedError
        self._tasks += count
        self._bytes += size_bytes

    def has_room(self, count: int, size_bytes: int) -> bool:
        """Return whether so much fits beside what is pending; one alone always does."""
        return not self._tasks or (
            self._tasks + count <= MAX_PENDING_TASKS
            and self._bytes + size_bytes <= MAX_PENDING_BYTES
        )

    # ------------------------------------------------------------------------ waiting

    def wait_for(
        self,
        submission: Submission,
        is_over: Callable[[], bool],
        timeout_s: float | None,
        *,
        what: str,
        task_id: str | None = None,
    ) -> None:
        """Wait until `is_over`, which changes with what arrives of the submission.

        Args:
            what: what is waited for, for people.
            task_id: whose outcome it is; empty: an acknowledgement; None: why it has not come is
                nobody's question.

        Raises:
            InvalidTaskError: `timeout_s` is no number of seconds.
            WaitTimeoutError: it is over.
        """
        timeout_s = bounded(timeout_s)
        if is_over():
            return
        with self.lock:
            waiters = self._waiters.get(submission)
            if waiters is None:
                waiters = self._waiters[submission] = _Waiters()
            waiters.wanted.append(is_over)
        try:
            with waiters.condition:
                self._wait(waiters.condition, is_over, timeout_s, what, task_id)
        finally:
            with self.lock:
                waiters.wanted.remove(is_over)
                if not waiters.wanted:
                    del self._waiters[submission]

    def wait_settled(self, submission: Submission, timeout_s: float | None) -> None:
        """Wait until a submission is acknowledged; raise what it was refused with."""
        what = f"the acknowledgement of {submission.task_id(0)}"
        self.wait_for(submission, lambda: submission.is_settled, timeout_s, what=what, task_id="")
        submission.raise_refusal()

    def flush(self, timeout_s: float | None) -> None:
        """Wait until what is pending now is settled; raise the first refusal since the last flush.

        Raises:
            WaitTimeoutError: `timeout_s` is over.
        """
        timeout_s = bounded(timeout_s)
        with self.lock:
            mine = set(self._pending)
            self._wait(
                self._room,
                lambda: mine.isdisjoint(self._pending),
                timeout_s,
                "the acknowledgement of what was submitted",
            )
        self.raise_refusal()

    def raise_refusal(self) -> None:
        """Raise the first refusal since the last time, with the ids of all; none: return."""
        with self.lock:
            refusal, self._refusal = self._refusal, None
            refused, self._refused = self._refused, []
        if refusal is not None:
            error = error_of(refusal.code, refusal.message)
            ids = [each.task_id(n) for each in refused for n in range(each.count)]
            error.details = {"task_ids": ids}
            raise error

    def pending(self) -> list[Submission]:
        """Return what is not yet acknowledged, in its order."""
        with self.lock:
            return list(self._pending)

    def place_of(self, task_id: str) -> tuple[Submission, int] | None:
        """Return where a task is that this client submits and that is not yet acknowledged."""
        session, _, number = task_id.partition("-")
        with self.lock:
            for submission in self._pending if number.isdecimal() else ():
                index = int(number) - submission.first
                if submission.session == session and 0 <= index < submission.count:
                    return submission, index
        return None

    def shut(self) -> None:
        """Take nothing more: who submits from now on is told so."""
        with self.lock:
            self._is_shut = True
            self._room.notify_all()

    def wait_empty(self, timeout_s: float | None) -> bool:
        """Wait until all is acknowledged or refused; False: it is not, or never will be."""
        with self.lock, contextlib.suppress(D8Error):
            self._wait(self._room, lambda: not self._pending, timeout_s, "the end", None)
        return not self._pending

    def _wait(
        self,
        condition: threading.Condition,
        is_over: Callable[[], bool],
        timeout_s: float | None,
        what: str,
        task_id: str | None = "",
    ) -> None:
        """Wait, holding `condition` (once)."""
        start = time.monotonic()
        while not is_over():
            self.check_may_wait()
            now = time.monotonic()
            left_s = LOOK_AROUND_S if timeout_s is None else start + timeout_s - now
            if left_s <= 0:
                is_look = timeout_s is None or timeout_s < LOOKS_S or task_id is None
                why = "" if is_look else self._look(condition, task_id or "").text
                if is_over():  # it came meanwhile
                    return
                raise timed_out(what, timeout_s, why)
            if task_id is not None and self.is_stalled(start, now):
                log_waiting(what, self._look(condition, task_id))
                continue
            condition.wait(min(LOOK_AROUND_S, left_s))

    def _look(self, condition: threading.Condition, task_id: str) -> Reason:
        """Find out why a wait is not over, letting go of `condition`: answers arrive under it."""
        condition.release()
        try:
            return self.why(task_id)
        finally:
            condition.acquire()

    def is_stalled(self, since: float, now: float) -> bool:
        """Return whether it is to be said that nothing has come for long; True once each time."""
        if now - max(since, self._moved_at) < QUIET_S or self._said_at >= self._moved_at:
            return False
        self._said_at = now
        return True

    # ------------------------------------------------------------------ the I/O thread

    def settled(self, submission: Submission) -> None:
        """Make room for what comes next, and wake who waits for this submission."""
        with self.lock:
            if submission.refusal is not None:
                self._note_refused(submission, submission.refusal)
            if submission in self._pending:
                del self._pending[submission]
                self._tasks -= submission.count
                self._bytes -= submission.size_bytes
                self._room.notify_all()
        self.changed(submission)

    def changed(self, submission: Submission) -> None:
        """Wake who waits for what this submission has now; nobody else: a wake-up costs time."""
        self.moved()
        if self._on_change is not None:
            self._on_change(submission)
        waiters = self._waiters.get(submission)
        if waiters is not None and any(is_over() for is_over in tuple(waiters.wanted)):
            with waiters.condition:
                waiters.condition.notify_all()

    def moved(self) -> None:
        """Something has come: who waits does not wait in vain."""
        self._moved_at = time.monotonic()

    def _note_refused(self, submission: Submission, refusal: Refused) -> None:
        self._refusal = self._refusal or refusal
        self._refused.append(submission)
        if len(self._refused) > MAX_REFUSED:
            untold = [each for each in self._refused if not each.is_told]
            self._refused = untold[-(MAX_REFUSED // 2) :]
            self.forgotten += sum(each.count for each in untold[: -(MAX_REFUSED // 2)])

    def close(self) -> None:
        """Wake everybody: waiting has become useless."""
        with self.lock:
            self._room.notify_all()
            waiting = list(self._waiters.values())
        for waiters in waiting:
            with waiters.condition:
                waiters.condition.notify_all()


class _Waiters:
    """The threads that wait for one submission."""

    __slots__ = ("condition", "wanted")

    def __init__(self) -> None:
        self.condition = threading.Condition(threading.Lock())
        #: of each thread, what it waits for
        self.wanted: list[Callable[[], bool]] = []


def log_waiting(what: str, why: Reason) -> None:
    """Log that a wait is long; a task that is at work is no reason to warn."""
    level = logging.INFO if why.is_running else logging.WARNING
    event(_log, level, "still.waiting", what=what, why=why.text)
