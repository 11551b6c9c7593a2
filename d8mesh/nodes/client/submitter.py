"""Puts tasks into parcels, on the threads of those who submit them.

Single tasks share the *open* parcel as long as they are of one kind: the I/O thread takes it as
soon as it need not wait. Whatever is submitted as a whole travels in a parcel of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from d8mesh.core.client_session import ClientSession
from d8mesh.core.messages import Group
from d8mesh.core.parcel import Parcel
from d8mesh.errors import WaitTimeoutError
from d8mesh.nodes.client.board import Board
from d8mesh.nodes.client.parcels import (
    Kind,
    Post,
    SubmitOptions,
    cut,
    digest_of,
    group_of,
    kind_in,
    kind_of,
    size_of,
)
from d8mesh.nodes.client.patience import countdown, give_up, told_whole
from d8mesh.nodes.client.runner import Runner


class Submitter:
    """Makes the parcels of one client, and numbers their tasks.

    Args:
        session: what the parcels are handed to, on the I/O thread.
        board: where they are counted; its lock guards what is here.
        runner: the I/O thread.

    Thread: any.
    """

    def __init__(self, session: ClientSession, board: Board, runner: Runner) -> None:
        self._session, self._board, self._runner = session, board, runner
        self._next_n = 0
        #: what the tasks of the open parcel share
        self._open_sort: tuple[Kind, float | None, bool, bool] | None = None

    def next_n(self) -> int:
        """Return a counter that no task has."""
        with self._board.lock:
            self._runner.seal()  # the open parcel's counters must stay consecutive
            n, self._next_n = self._next_n, self._next_n + 1
        return n

    def append(
        self,
        kind: Kind,
        payload: bytes,
        timeout_s: float | None,
        is_watched: bool = True,
        is_listened: bool = False,
    ) -> tuple[Parcel, int]:
        """Put one task into the open parcel, or begin a new one; return its place.

        Raises:
            WaitTimeoutError: there was no room within `timeout_s`.
        """
        board, runner = self._board, self._runner
        sort = (kind, timeout_s, is_watched, is_listened)
        # What nobody watches (the shim) is refused at once when the queue is full.
        patience_s = timeout_s if is_watched else 0.0
        with board.lock:
            board.wait_for_room(1, len(payload), timeout_s)
            parcel = runner.open
            if parcel is not None and self._open_sort == sort and board.grow(parcel, len(payload)):
                index = parcel.count
                parcel.count += 1
                parcel.groups[0].payloads.append(payload)
                if patience_s is not None:  # else it waits for ever, as the others in it do
                    parcel.give_up = give_up(patience_s)
                self._next_n += 1
                if is_listened:
                    runner.keeping.expect(parcel, index)
                return parcel, index
            runner.seal()
            group = group_of(kind, [payload])
            parcel = self._new_parcel([group], 1, len(payload), patience_s, is_watched=is_watched)
            parcel.is_listened = is_listened
            if is_listened:
                runner.keeping.expect(parcel, 0)
            runner.open, self._open_sort = parcel, sort
        runner.wake()
        return parcel, 0

    def enqueue(self, groups: list[Group], timeout_s: float | None, post: Post) -> Parcel:
        """Submit these as one parcel.

        Raises:
            InvalidTaskError, PayloadTooLargeError: no message can carry them.
            WaitTimeoutError: there was no room within `timeout_s`.
        """
        count, size = size_of(groups)
        with self._board.lock:
            self._board.wait_for_room(count, size, timeout_s)
            self._runner.seal()
            patience_s = timeout_s if post.is_patient else 0.0
            parcel = self._new_parcel(groups, count, size, patience_s, is_watched=post.is_watched)
            parcel.key, parcel.is_listened = post.key, post.is_listened
            parcel.digest = post.digest or (digest_of(groups) if post.key else b"")
            for index in range(count if post.is_listened else 0):
                self._runner.keeping.expect(parcel, index)
            self._runner.do(partial(self._session.submit, parcel))
        return parcel

    def enqueue_many(
        self, kind: str, datas: Iterable[Mapping[str, Any]], options: SubmitOptions
    ) -> list[Parcel]:
        """Submit tasks of one type in as many parcels as it takes; wait until all are settled.

        Raises:
            TaskRejectedError: one was refused, or something of it is not allowed.
            WaitTimeoutError: ``options["timeout"]`` is over.
        """
        timeout_s = options.get("timeout")
        left_s = countdown(timeout_s)
        post = Post(is_listened=bool(options.get("listen")))
        parcels: list[Parcel] = []
        try:
            for model, payloads in cut(kind, datas):
                group = group_of(kind_of(kind, model, options), payloads)
                parcels.append(self.enqueue([group], left_s(), post))
            for parcel in parcels:
                self._board.wait_settled(parcel, left_s())
        except WaitTimeoutError as error:
            raise told_whole(error, timeout_s) from None
        return parcels

    def place(
        self, groups: Sequence[Group], timeout_s: float | None, post: Post
    ) -> tuple[Parcel, int | None]:
        """Submit these, all or nothing; return their parcel, and the place in it of a single one.

        Raises:
            As of `enqueue`.
        """
        count, _ = size_of(groups)
        if count == 1 and not post.key and not post.is_listened:
            # It travels with what others submit at the same time.
            kind, payload = kind_in(groups[0]), groups[0].payloads[0]
            return self.append(kind, payload, timeout_s, post.is_watched)
        return self.enqueue(list(groups), timeout_s, post), None

    def _new_parcel(
        self,
        groups: list[Group],
        count: int,
        size: int,
        timeout_s: float | None,
        *,
        is_watched: bool,
    ) -> Parcel:
        first, self._next_n = self._next_n, self._next_n + count
        parcel = Parcel(self._session.name, first, groups, count, is_watched=is_watched)
        parcel.give_up = give_up(timeout_s)
        self._board.add(parcel, size)
        return parcel
