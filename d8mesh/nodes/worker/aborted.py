"""Attempts that are no longer wanted, and what is to be done at once when one is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable


class Aborted:
    """The tokens of aborted attempts that have not ended yet.

    Thread: any; `add` and `forget` on the I/O thread.
    """

    def __init__(self) -> None:
        self._tokens: set[bytes] = set()
        self._lock = threading.Lock()
        #: by token what is called when it is aborted
        self._calls: dict[bytes, list[Callable[[], None]]] = {}

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def __contains__(self, token: bytes) -> bool:
        return token in self._tokens

    def add(self, tokens: Iterable[bytes]) -> None:
        """Note that these are no longer wanted, and do what is to be done then."""
        calls: list[Callable[[], None]] = []
        with self._lock:
            for token in tokens:
                self._tokens.add(token)
                calls += self._calls.get(token, ())
        for call in calls:
            call()

    def forget(self, tokens: Iterable[bytes]) -> None:
        """Note that these have ended."""
        self._tokens.difference_update(tokens)

    def on_add(self, token: bytes, call: Callable[[], None]) -> Callable[[], None]:
        """Have `call` called once this is aborted, now if it is; return what undoes that.

        Args:
            call: must neither wait nor raise; the I/O thread calls it.
        """
        with self._lock:
            is_aborted = token in self._tokens
            if not is_aborted:
                self._calls.setdefault(token, []).append(call)
        if is_aborted:
            call()
        return lambda: self._undo(token, call)

    def _undo(self, token: bytes, call: Callable[[], None]) -> None:
        with self._lock:
            calls = self._calls.get(token, [])
            if call in calls:
                calls.remove(call)
            if not calls:
                self._calls.pop(token, None)
