"""What a service tells of its models at length: asked for once for each content, told on."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from d8mesh.backends.backend import ModelInfo, Tells
from d8mesh.core.protocol.chat import JsonObject
from d8mesh.errors import D8Error

#: How often a model is asked about that is not described: then it is left alone.
MAX_DESCRIBE_TRIES: Final = 3


class Descriptions:
    """Which models of one service have been described.

    Args:
        on_told: told the service's id, the model, and what is said of it.

    Thread: any.
    """

    def __init__(self, on_told: Callable[[str, str, JsonObject], None]) -> None:
        self._on_told = on_told
        self._lock = threading.Lock()
        self._is_busy = False
        #: by name and content, how often it was asked about; `MAX_DESCRIBE_TRIES` when it is told
        self._asked: dict[tuple[str, str], int] = {}

    def news(self, models: Iterable[ModelInfo]) -> list[ModelInfo]:
        """Return those to ask about; what is there no longer is forgotten."""
        there = {_key(each): each for each in models}
        with self._lock:
            self._asked = {key: self._asked.get(key, 0) for key in there}
            if self._is_busy:
                return []
            return [each for key, each in there.items() if self._asked[key] < MAX_DESCRIBE_TRIES]

    def tell(self, backend: Tells, service: str, models: Sequence[ModelInfo]) -> None:
        """Ask about these, one after another; a service that does not answer is left alone."""
        with self._lock:
            if self._is_busy:
                return
            self._is_busy = True
        try:
            for info in models:
                self._note(info, self._count(info) + 1)
                told = backend.describe(info.name)
                self._note(info, MAX_DESCRIBE_TRIES)
                self._on_told(service, info.name, told)
        except (D8Error, OSError, http.client.HTTPException):
            pass  # the next look asks again
        finally:
            with self._lock:
                self._is_busy = False

    def _count(self, info: ModelInfo) -> int:
        with self._lock:
            return self._asked.get(_key(info), 0)

    def _note(self, info: ModelInfo, count: int) -> None:
        with self._lock:
            self._asked[_key(info)] = count


def _key(info: ModelInfo) -> tuple[str, str]:
    return info.name, info.digest or info.changed_at
