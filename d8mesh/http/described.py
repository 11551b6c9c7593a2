"""What a call of a door takes and answers, as types: for who reads of it, and for the tests.

The types of bodies, queries and answers are `msgspec.Struct` s, so that each is told as JSON Schema
and tried against what really goes over the wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from d8mesh.http.answers import JSON

#: The media types of what is no JSON: opaque bytes, text, events, a line of JSON for each.
BINARY: Final = "application/octet-stream"
PLAIN_TEXT: Final = "text/plain"
EVENTS: Final = "text/event-stream"
LINES: Final = "application/x-ndjson"
FORM: Final = "multipart/form-data"


@dataclass(frozen=True, slots=True)
class HttpReply:
    """One kind of answer.

    kind: the type of its body; of lines that of each. None: it has no form of its own.
    media: its media type; "": it has no body.
    """

    status: int
    kind: object = None
    media: str = JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class AboutCall:
    """One call.

    what: in a sentence.
    answers: all but errors, which are in the form of the door.
    body: the type of its body; None: it takes none, or `media` says all there is to say.
    media: of its body; "": as the route says.
    may_be_empty: the body may be left out.
    takes_nulls: a null is as good as leaving a field out that need not be there.
    query: a Struct: each field is a parameter behind the question mark.
    headers: those of its own, each with the type of its value.
    problem_kinds: of errors that are told in other forms than the door's, to who asks for those.
    """

    what: str
    answers: Sequence[HttpReply]
    body: object = None
    media: str = ""
    may_be_empty: bool = False
    takes_nulls: bool = False
    query: type | None = None
    headers: Mapping[str, object] = field(default_factory=dict)
    problem_kinds: Sequence[type] = ()


#: Of a door: what is said of each of its calls, by ``METHOD RULE``.
AboutCalls: TypeAlias = Mapping[str, AboutCall]

#: The answers of a call that is always refused.
NOT_HERE: Final[tuple[HttpReply, ...]] = ()


def json_of(kind: object, status: int = 200) -> tuple[HttpReply, ...]:
    """Return the answers of a call that has one kind of them."""
    return (HttpReply(status, kind),)
