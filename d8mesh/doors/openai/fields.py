"""The fields of a request's body: each read once, as what it must be; the rest has no effect.

What is wrong is told with the field first: ``top_p: expected a number from 0 to 1``. That is how
an error's ``param`` is known; see `doors.openai.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from d8mesh.core.protocol.json_model import MAX_INT, MIN_INT
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.field_values import number_of

#: Of the name of a field that is told to a caller.
MAX_FIELD_CHARS: Final = 64


class RequestFields:
    """Reads a body; null counts as absent.

    Args:
        body: what the JSON text holds.
        path: where it stands in the request: "" or ``messages[0].``, before each name.
    """

    def __init__(self, body: object, path: str = "") -> None:
        if not isinstance(body, Mapping):
            where = path.rstrip(".") or "the body"
            raise InvalidTaskError(f"{where}: expected an object")
        self._body: Mapping[str, Any] = body
        self._path = path
        self._read: set[str] = set()

    def get(self, name: str) -> Any:
        """Return the field as it is; None if it is not there."""
        self._read.add(name)
        return self._body.get(name)

    def text(self, name: str) -> str | None:
        """Return a text; None if it is not there."""
        value = self.get(name)
        if not (value is None or isinstance(value, str)):
            raise self.wrong(name, "a text")
        return value

    def required_text(self, name: str) -> str:
        """Return a text that must be there, and not be empty."""
        value = self.text(name)
        if value is None:
            raise InvalidTaskError(f"Missing field: {self._path}{name}")
        if not value:
            raise self.wrong(name, "a text that is not empty")
        return value

    def switch(self, name: str) -> bool | None:
        """Return true or false; None if it is not there."""
        value = self.get(name)
        if not (value is None or isinstance(value, bool)):
            raise self.wrong(name, "true or false")
        return value

    def number(self, name: str, *, low: float, high: float) -> float | None:
        """Return a number within its bounds; None if it is not there."""
        self._read.add(name)
        return number_of(self._body, name, self._path, low=low, high=high)

    def whole(self, name: str, *, low: int = MIN_INT, high: int = MAX_INT) -> int | None:
        """Return a whole number within its bounds; None if it is not there."""
        value = self.get(name)
        if value is None:
            return None
        is_whole = type(value) is int or (type(value) is float and value.is_integer())
        if not is_whole or not low <= value <= high:
            bounds = "" if (low, high) == (MIN_INT, MAX_INT) else f" from {low} to {high}"
            raise self.wrong(name, f"a whole number{bounds}")
        return int(value)

    def mapping(self, name: str) -> Mapping[str, Any] | None:
        """Return an object; None if it is not there."""
        value = self.get(name)
        if not (value is None or isinstance(value, Mapping)):
            raise self.wrong(name, "an object")
        return value

    def rows(self, name: str) -> list[Any] | None:
        """Return a list; None if it is not there."""
        value = self.get(name)
        if not (value is None or isinstance(value, list)):
            raise self.wrong(name, "a list")
        return value

    def wrong(self, name: str, expected: str) -> InvalidTaskError:
        """Return the error for a field that is not what it must be."""
        return InvalidTaskError(f"{self._path}{name}: expected {expected}")

    def refuse(self, names: Mapping[str, str]) -> None:
        """Refuse fields that would change the answer and cannot be obeyed.

        Args:
            names: why not, of each.
        """
        for name, why in names.items():
            if self.get(name):
                raise InvalidTaskError(f"{self._path}{name}: {why}")

    def unread(self) -> tuple[str, ...]:
        """Return which fields say something that nobody has read, in order.

        What is null, false or empty asks for nothing.
        """
        left = (name for name, value in self._body.items() if name not in self._read and value)
        return tuple(sorted(str(name)[:MAX_FIELD_CHARS] for name in left))
