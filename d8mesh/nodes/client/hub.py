"""What the handles of tasks need of their client, beyond its public calls."""

from __future__ import annotations

from collections.abc import Callable

from d8mesh.core.client_session import ClientSession
from d8mesh.core.parcel import Parcel
from d8mesh.edge.waits import wait_for
from d8mesh.errors import D8Error
from d8mesh.nodes.client.board import LOOK_S, Board
from d8mesh.nodes.client.cancellations import Cancellations
from d8mesh.nodes.client.completions import Call, Completions
from d8mesh.nodes.client.patience import countdown
from d8mesh.nodes.client.runner import Runner


class Hub:
    """Where the handles of one client's tasks wait, watch, cancel, and leave what to call.

    Args:
        session, board, runner: the client's.
        completions: what is called when its tasks are done.
        cancellations: what it cancels in passing.
        check_alive: raises when nothing comes any more.

    Thread: any.
    """

    def __init__(
        self,
        session: ClientSession,
        board: Board,
        runner: Runner,
        *,
        completions: Completions,
        cancellations: Cancellations,
        check_alive: Callable[[], None],
    ) -> None:
        self._session, self._board, self._runner = session, board, runner
        self._completions, self._cancellations = completions, cancellations
        self._check_alive = check_alive
        board.check_may_wait = self.check_may_wait

    @property
    def is_over(self) -> bool:
        """True when nothing comes any more: the client is closed or has died, or is a fork's."""
        try:
            self._check_alive()
        except D8Error:
            return True
        return False

    def check_may_wait(self) -> None:
        """Make sure that waiting makes sense.

        Raises:
            D8Error: it would be in vain, or for ever.
        """
        self._check_alive()
        self.check_is_elsewhere()

    def check_is_elsewhere(self) -> None:
        """Make sure that this is not a callback, whose thread brings all that it could wait for.

        Raises:
            D8Error: it is.
        """
        if self._runner.is_caller:
            raise D8Error(
                "this is called by the client's own thread (a callback): to wait here for "
                "something of the same client would be for ever"
            )

    def wait_for(
        self,
        parcel: Parcel,
        is_over: Callable[[], bool],
        timeout_s: float | None,
        *,
        what: str,
        task_id: str | None = None,
    ) -> None:
        """Wait for something that arrives of a parcel; see `Board.wait_for`."""
        self._board.wait_for(parcel, is_over, timeout_s, what=what, task_id=task_id)

    def wait_settled(self, parcel: Parcel, timeout_s: float | None) -> None:
        """Wait until a parcel is acknowledged; see `Board.wait_settled`."""
        self._board.wait_settled(parcel, timeout_s)

    def wait_connected(self, timeout_s: float | None) -> bool:
        """Wait until an orchestrator answers; return whether one does."""
        left_s, connected = countdown(timeout_s), self._runner.connected
        while not connected.is_set():
            self.check_may_wait()
            left = left_s()
            if left is not None and left <= 0:
                return False
            wait_for(connected, LOOK_S if left is None else min(LOOK_S, left))
        return True

    def watch(self, parcel: Parcel) -> None:
        """Have the outcome of another's task arrive in `parcel`."""
        self._runner.do(lambda now: self._session.watch(parcel))

    def when_done(
        self, parcel: Parcel, index: int, call: Call, is_done: Callable[[], bool]
    ) -> None:
        """Have `call` called when a task is done; see `Completions.add`."""
        self._completions.add(parcel, index, call, is_done)

    def never_mind(self, parcel: Parcel, index: int, call: Call) -> None:
        """Have it called no more."""
        self._completions.discard(parcel, index, call)

    def drop(self, parcel: Parcel, index: int) -> None:
        """Cancel a task that nobody wants any more; return at once."""
        if not parcel.states[index] and parcel.refusal is None and not self.is_over:
            self._cancellations.add(parcel, index)

    def wait_all(self, timeout_s: float | None) -> bool:
        """Wait until all is acknowledged, and what was dropped is cancelled.

        Returns:
            Whether all is acknowledged; False: not in time, or it never will be.
        """
        left_s = countdown(timeout_s)
        is_empty = self._board.wait_empty(timeout_s)
        if is_empty and self._session.is_up:
            self.wait_dropped(left_s())
        return is_empty

    def wait_dropped(self, timeout_s: float | None) -> bool:
        """Wait until the orchestrator has heard of all that was dropped; False: not in time."""
        return self._cancellations.wait(timeout_s)
