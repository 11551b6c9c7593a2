"""What a client's session awaits: the outcomes of its submissions, and of anybody's single tasks.

It is state, not a message: after any doubt all of it is asked for again by id.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from d8mesh.core.client.effects import parts_of
from d8mesh.core.client.submission import Submission, counter_of
from d8mesh.core.protocol.messages import Outcomes
from d8mesh.errors import ProtocolError

#: What is awaited is asked for again this often: outcomes may be dropped under pressure.
REWATCH_S: Final = 30.0


class Awaited:
    """The submissions and single tasks whose outcomes one session awaits.

    Args:
        session: with which the ids of its own tasks begin.
    """

    def __init__(self, session: str) -> None:
        self._session = session
        #: submissions in the order of their first counters
        self._firsts: list[int] = []
        self._submissions: list[Submission] = []
        self._singles: dict[str, list[Submission]] = {}
        self._last: Submission | None = None  #: the one that outcomes came for last
        self._next_rewatch = 0.0
        self._round: Iterator[list[str]] = iter(())

    def add(self, submission: Submission) -> None:
        """Await the tasks of a submission of this session."""
        at = bisect_right(self._firsts, submission.first)
        self._firsts.insert(at, submission.first)
        self._submissions.insert(at, submission)

    def add_singles(self, submission: Submission) -> list[str]:
        """Await tasks that may be anybody's; return their ids."""
        ids = [submission.task_id(index) for index in range(submission.count)]
        for task_id in ids:
            self._singles.setdefault(task_id, []).append(submission)
        return ids

    def remove_single(self, submission: Submission) -> str:
        """Await the task of `submission` no longer.

        Returns:
            Its id, if nothing else awaits it now; else empty.
        """
        task_id = submission.task_id(0)
        waiting = self._singles.get(task_id, [])
        if submission not in waiting:
            return ""
        waiting.remove(submission)
        if waiting:
            return ""
        del self._singles[task_id]
        is_own = task_id.startswith(self._session) and self._find(submission.first) is not None
        return "" if is_own else task_id

    def forget(self, submission: Submission) -> None:
        """Await the tasks of a submission of this session no longer."""
        at = bisect_right(self._firsts, submission.first) - 1
        if at >= 0 and self._submissions[at] is submission:
            del self._firsts[at], self._submissions[at]
        if self._last is submission:
            self._last = None

    def note(self, message: Outcomes) -> list[Submission]:
        """Take in outcomes; return the submissions that have something new.

        Raises:
            ProtocolError: an id or a state is none.
        """
        if 0 in message.states:
            raise ProtocolError("Outcomes: 0 is no state of a task")
        touched: dict[int, Submission] = {}
        session, start = self._session, len(self._session) + 1
        submission = self._last
        first, end = (0, 0) if submission is None else submission.counters
        for task_id, state, payload in zip(
            message.ids, message.states, message.payloads, strict=True
        ):
            if self._singles and task_id in self._singles:
                for single in self._singles.pop(task_id):
                    single.note(single.index_of(task_id), state, payload)
                    touched[id(single)] = single
            if not task_id.startswith(session):
                continue
            n = counter_of(task_id[start:])
            if submission is None or not first <= n < end:
                submission = self._find(n)
                if submission is None:
                    continue
                first, end = submission.counters
            if submission.note(n - first, state, payload):
                touched[id(submission)] = submission
        self._last = submission
        for submission in touched.values():
            if not submission.missing:
                self.forget(submission)
        return list(touched.values())

    def all_parts(self, now: float) -> Iterator[list[str]]:
        """Yield all ids, in parts that fit a message: what was sent meanwhile may be lost."""
        self._next_rewatch = now + REWATCH_S
        self._round = iter(())
        return parts_of(self._ids())

    def next_part(self, now: float) -> list[str]:
        """Return the next part of the ids: in rounds, REWATCH_S apart or slower."""
        ids = next(self._round, None)
        if ids is None and now >= self._next_rewatch:
            self._round = self.all_parts(now)
            ids = next(self._round, None)
        return ids or []

    @property
    def is_accepted(self) -> bool:
        """True while tasks are awaited that this session's orchestrator has accepted."""
        return any(submission.is_accepted for submission in self._submissions)

    def check(self) -> None:
        """Assert what must hold between the collections (for tests)."""
        assert self._firsts == sorted(submission.first for submission in self._submissions)
        for submission in self._submissions:
            assert 0 < submission.missing == submission.states.count(0), submission.first

    def _find(self, n: int) -> Submission | None:
        at = bisect_right(self._firsts, n) - 1
        if at < 0:
            return None
        submission = self._submissions[at]
        return submission if n < submission.first + submission.count else None

    def _ids(self) -> Iterator[str]:
        yield from list(self._singles)
        for submission in list(self._submissions):
            if submission.is_accepted:
                yield from submission.awaited()
