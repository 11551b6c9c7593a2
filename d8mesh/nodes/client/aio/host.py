"""Takes a runner's turns on an asyncio event loop: when something comes in, is wanted, is due."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from d8mesh.edge.transport.sockets import DealerLink
from d8mesh.nodes.client.aio.watcher import watcher_on
from d8mesh.nodes.client.runner import ClientRunner

_T = TypeVar("_T")
#: Messages taken in one turn: a turn holds up everything else on the loop, and each message may
#: carry a thousand outcomes.
MESSAGES_PER_LOOP_TURN: Final = 32


class LoopHost:
    """The host of one runner.

    Args:
        loop: the event loop; it must be running when `start` is called.
        after_turn: called after each turn, whatever it brought.

    Thread: the loop's, but for `wake_from_afar`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, after_turn: Callable[[], None]) -> None:
        self._loop, self._after_turn = loop, after_turn
        self._watcher = watcher_on(loop)
        self._runner: ClientRunner | None = None
        self._is_turn_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._errands: set[asyncio.Future[Any]] = set()

    def start(self, runner: ClientRunner) -> None:
        """Begin to take the turns of `runner`."""
        self._runner = runner
        self.wake()

    def stop(self) -> None:
        """Take no turn any more."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.end()
        self._watcher.close()
        if self._timer is not None:
            self._timer.cancel()

    # ------------------------------------------------------------------- for the runner

    def wake(self) -> None:
        """Have a turn taken soon; what is wanted until then is done in the same turn."""
        if not self._is_turn_due:
            self._is_turn_due = True
            self._loop.call_soon(self._take_due_turn)

    def wake_from_afar(self) -> None:
        """Have a turn taken soon. Thread: any."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed: no turns any more
            self._loop.call_soon_threadsafe(self.wake)

    def add(self, link: DealerLink) -> None:
        """Take a turn whenever something comes in at `link`."""
        messages, monitor = link.descriptors
        self._watcher.add(messages, self._take_turn)
        self._watcher.add(monitor, lambda: self._look(link))
        link.look()  # what was told before this left no edge

    def discard(self, link: DealerLink) -> None:
        """Wait for `link` no longer, and close it: on a thread, as that may take some time."""
        for descriptor in link.descriptors:
            self._watcher.remove(descriptor)
        self.have_done(link.close)

    def have_done(self, work: Callable[[], _T]) -> asyncio.Future[_T | None]:
        """Have something done that may block, on a thread; `finish` waits for it.

        Returns:
            What is done with what `work` returns; with None if it raised.
        """
        done: asyncio.Future[_T | None] = self._loop.create_future()

        def run() -> None:
            result = None
            try:
                result = work()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has been closed
                    self._loop.call_soon_threadsafe(done.set_result, result)

        threading.Thread(target=run, name="d8-errand", daemon=True).start()
        self._errands.add(done)  # now: a thread that cannot be started is not waited for
        done.add_done_callback(self._errands.discard)
        return done

    async def finish(self) -> None:
        """Wait for what was given to `have_done`."""
        while self._errands:
            await asyncio.wait(set(self._errands))

    # ------------------------------------------------------------------------- the turns

    def _look(self, link: DealerLink) -> None:
        link.look()
        self._take_turn()

    def _take_due_turn(self) -> None:
        self._is_turn_due = False
        self._take_turn()

    def _take_timed_turn(self) -> None:
        self._timer = None
        self._take_turn()

    def _take_turn(self) -> None:
        runner = self._runner
        if runner is None:
            return
        try:
            runner.turn(MESSAGES_PER_LOOP_TURN)
            is_more = runner.has_input  # also what came in while something was sent
        except Exception as error:
            runner.died(error)
            self.stop()
            self._after_turn()
            raise
        self._set_timer(0.0 if is_more else runner.sleep_s())
        self._after_turn()

    def _set_timer(self, sleep_s: float) -> None:
        """Have a turn taken in time; one that comes sooner does no harm, and is cheaper."""
        if sleep_s <= 0:
            self.wake()
            return
        due, timer = self._loop.time() + sleep_s, self._timer
        if timer is not None and timer.when() <= due:
            return
        if timer is not None:
            timer.cancel()
        self._timer = self._loop.call_at(due, self._take_timed_turn)
