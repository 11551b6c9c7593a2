"""Tells an event loop that a descriptor is ready, on loops that can do so and on those that cannot.

Windows' default loop (the Proactor) has no `add_reader`. There a thread waits in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Final, Protocol

#: How long `close` waits for the thread.
WATCHER_END_S: Final = 3.0
#: Read at once of what woke the thread.
BYTES: Final = 4096


class Watcher(Protocol):
    """Calls back, on the loop, while a descriptor is readable."""

    def add(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        """Begin; what is readable and stays so is told again and again."""

    def remove(self, descriptor: int) -> None:
        """End; nothing is told of it any more."""

    def close(self) -> None:
        """End all of it."""


def watcher_on(loop: asyncio.AbstractEventLoop) -> Watcher:
    """Return what watches descriptors for `loop`."""
    probe, other = socket.socketpair()
    with probe, other:
        try:
            loop.add_reader(probe, int)
            loop.remove_reader(probe)
        except NotImplementedError:
            return WatchingThread(loop)
    return _Readers(loop)


class _Readers:
    """The loop's own readers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._added: set[int] = set()

    def add(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        self._added.add(descriptor)
        self._loop.add_reader(descriptor, on_readable)

    def remove(self, descriptor: int) -> None:
        self._added.discard(descriptor)
        if not self._loop.is_closed():
            self._loop.remove_reader(descriptor)

    def close(self) -> None:
        for descriptor in list(self._added):
            self.remove(descriptor)


class WatchingThread:
    """A thread that waits for descriptors in the place of a loop that cannot.

    It tells of what is ready, and waits again once the loop has dealt with all of that: else
    it would find the same readable at once.

    Args:
        loop: where the calls are made.

    Thread: the loop's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        #: a byte ends a wait of the thread
        self._inner, self._outer = socket.socketpair()
        self._inner.setblocking(False)
        self._outer.setblocking(False)
        self._changed = threading.Condition()  #: guards what follows; never held in a wait
        self._calls: dict[int, Callable[[], None]] = {}
        self._removed: set[int] = set()
        self._is_waiting = self._is_held = self._is_stopped = False
        self._is_dealt_with = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="d8-watch", daemon=True)
        self._thread.start()

    def add(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        """See `Watcher`."""
        with self._changed:
            self._calls[descriptor] = on_readable
        self._nudge()

    def remove(self, descriptor: int) -> None:
        """See `Watcher`; after this the thread does not wait for it, so it may be closed."""
        with self._changed:
            self._calls.pop(descriptor, None)
            self._removed.add(descriptor)
            self._stand_still()

    def close(self) -> None:
        """See `Watcher`."""
        with self._changed:
            self._is_stopped = True
        self._nudge()
        self._is_dealt_with.set()
        self._thread.join(WATCHER_END_S)

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):  # full: it is nudged; or closed
            self._outer.send(b"\0")

    def _stand_still(self) -> None:
        """Return once the thread has ended its wait, and has not begun another."""
        self._is_held = True
        self._nudge()
        while self._is_waiting:
            self._changed.wait()
        self._is_held = False
        self._changed.notify_all()

    def _serve(self) -> None:
        inner = self._inner.fileno()
        with selectors.DefaultSelector() as selector, self._inner, self._outer:
            selector.register(inner, selectors.EVENT_READ)
            while self._begin_wait(selector):
                ready = {key.fd for key, _ in selector.select()}
                if inner in ready:
                    ready.discard(inner)
                    self._inner.recv(BYTES)
                self._end_wait()
                if ready and not self._have_told(ready):
                    break

    def _begin_wait(self, selector: selectors.BaseSelector) -> bool:
        """Bring the list of what is waited for up to date; False: it is over."""
        with self._changed:
            while self._is_held:
                self._changed.wait()
            for descriptor in self._removed:
                if descriptor in selector.get_map():
                    selector.unregister(descriptor)
            self._removed.clear()
            for descriptor in self._calls:
                if descriptor not in selector.get_map():
                    selector.register(descriptor, selectors.EVENT_READ)
            self._is_waiting = not self._is_stopped
            return self._is_waiting

    def _end_wait(self) -> None:
        with self._changed:
            self._is_waiting = False
            self._changed.notify_all()

    def _have_told(self, ready: set[int]) -> bool:
        """Have the loop deal with what is ready, and wait until it has; False: it is closed."""
        self._is_dealt_with.clear()
        try:
            self._loop.call_soon_threadsafe(self._tell, ready)
        except RuntimeError:
            return False
        while not self._is_dealt_with.wait(WATCHER_END_S):
            if self._loop.is_closed() or self._is_stopped:
                return False
        return True

    def _tell(self, ready: set[int]) -> None:
        try:
            for descriptor in ready:
                call = self._calls.get(descriptor)
                if call is not None:
                    call()
        finally:
            self._is_dealt_with.set()
