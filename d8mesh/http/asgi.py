"""What ASGI (https://asgi.readthedocs.io) calls its types, and the headers of its requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, Protocol, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
AsgiMessage: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[AsgiMessage]]
AsgiSend: TypeAlias = Callable[[AsgiMessage], Awaitable[None]]
AsgiApplication: TypeAlias = Callable[[Scope, Receive, AsgiSend], Awaitable[None]]


#: Of a scope: the `BodySink` of its answer, where the server has one.
SINK: Final = "d8.sink"


class BodySink(Protocol):
    """Where the parts of an answer's body go by calls, once its head has been sent."""

    #: called when there is room again
    on_room: Callable[[], None] | None

    @property
    def is_full(self) -> bool:
        """True while the reader does not take what is there."""

    def write_part(self, body: bytes, *, has_more: bool) -> None:
        """Send a part; nothing if the caller has left."""

    def abort(self) -> None:
        """End the connection at once."""


def fields_of(scope: Scope) -> Mapping[str, str]:
    """Return the headers by lower-case name; what came twice is joined by a comma."""
    fields: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        fields[key] = f"{fields[key]},{text}" if key in fields else text
    return fields
