"""Messages to frames and back; every limit on what comes in is checked here.

A message is one frame. Decoding is strict: unknown verbs, missing or trailing fields,
wrong types, values out of range and columns of unequal lengths raise `ProtocolError`
with the field's path. Nothing is allocated that the frame does not hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias, TypeVar

import msgspec
from msgspec.structs import astuple, replace

from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.elements import has_more_than
from d8mesh.errors import ProtocolError, VersionError

_M = TypeVar("_M")
Decode: TypeAlias = Callable[[bytes | memoryview], _M]

#: Frames below this cannot become large: an element takes at most 120 bytes in memory.
COUNTED_BYTES: Final = 16 * 1024
#: What a frame may have in any case: 2,500 models that nothing is known of.
FREE_ELEMENTS: Final = 50_000
#: Beyond these, so that what is made of a frame is at most four times as large.
BYTES_PER_ELEMENT: Final = 16
#: More than a worker with 7,000 models has; counting these takes 50 ms.
MAX_ELEMENTS: Final = 200_000
#: msgpack's short array.
_FIXARRAY: Final = 0x90

_encode: Final = msgspec.msgpack.Encoder().encode


def encode(message: m.Message) -> bytes:
    """Return the one frame of a message; last fields that came later are left out if empty."""
    shorten = _SHORTEN.get(type(message))
    return _encode(message if shorten is None else shorten(message))


def _shortened(kind: type[m.Message], late: int = 1) -> Callable[[m.Message], object]:
    """Return what leaves the last fields, at most `late`, out so far as they are empty."""
    tag, fields = kind.__struct_config__.tag, kind.__struct_fields__

    def shorten(message: m.Message) -> object:
        end = len(fields)
        while end > len(fields) - late and not getattr(message, fields[end - 1]):
            end -= 1
        return message if end == len(fields) else (tag, *astuple(message)[:end])

    return shorten


def _short_submit(message: m.Submit) -> object:
    groups = [group if group.source else astuple(group)[:-1] for group in message.groups]
    seq, session, first, _, *rest = astuple(message)
    return (21, seq, session, first, groups, *(rest if message.is_listened else rest[:-1]))


def _short_measured(message: m.Measured) -> object:
    return replace(message, models=_short_models(message.models))


def _short_services(message: m.Services) -> object:
    cut = [replace(each, models=_short_models(each.models)) for each in message.services]
    return replace(message, services=cut)


def _short_models(models: list[m.OfferedModel]) -> list[object]:
    short: list[object] = []
    for model in models:
        items = astuple(model)
        short.append(model if any(items[_FIRST_MODEL_ITEMS:]) else items[:_FIRST_MODEL_ITEMS])
    return short


def _decoder(kind: type[_M], *, name: str, is_strict: bool = False) -> Decode[_M]:
    """Return what decodes one direction; `is_strict`: anybody may be the sender."""
    decoder = msgspec.msgpack.Decoder(kind)

    def decode(frame: bytes | memoryview) -> _M:
        if len(frame) > m.MAX_FRAME_BYTES:
            raise ProtocolError(f"frame of {len(frame)} bytes: at most {m.MAX_FRAME_BYTES}")
        if is_strict and len(frame) > COUNTED_BYTES and not _is_bounded(frame):
            raise ProtocolError(f"frame of {len(frame)} bytes has more elements than it may")
        try:
            message = decoder.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            if is_strict and (version := _other_version(frame)) is not None:
                raise VersionError(m.spoken_instead_of(version)) from error
            raise ProtocolError(f"not a message to a {name}: {error}") from error
        check = _COLUMN_CHECKS.get(type(message))
        if check is not None and not check(message):
            raise ProtocolError(f"{type(message).__name__}: columns of unequal lengths")
        return message

    return decode


def _is_bounded(frame: bytes | memoryview) -> bool:
    """Return whether a frame may be decoded: its elements are few for its size.

    Of messages in columns each element has a bound of its own.
    """
    if frame[0] & 0xF0 == _FIXARRAY and frame[1] in _TAGS_IN_COLUMNS:
        return True
    most = min(FREE_ELEMENTS + len(frame) // BYTES_PER_ELEMENT, MAX_ELEMENTS)
    return not has_more_than(most, frame)


def _other_version(frame: bytes | memoryview) -> int | None:
    """Return the version of a HELLO that is not spoken here: it may have other fields.

    Its second element is its version in every version.
    """
    try:
        opening = _OPENING.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    is_other = opening.tag in _HELLO_TAGS and opening.version not in m.VERSIONS
    return opening.version if is_other else None


def _submit_is_bounded(message: m.Submit) -> bool:
    count = 0
    for group in message.groups:
        if not group.payloads:
            return False
        count += len(group.payloads)
    return count <= m.MAX_BATCH_TASKS


def _worker_hello_is_sound(message: m.WorkerHello) -> bool:
    _check_names(message, message.worker_id, message.boot_id, message.worker_type, message.host)
    _check_names(message, message.machine_id, *message.task_types, *message.models)
    return len(message.held_ids) == len(message.held_tokens)


def _client_hello_is_sound(message: m.ClientHello) -> bool:
    _check_names(message, message.host)
    return True


def _check_names(message: m.Message, *names: str) -> None:
    """Refuse what could do something to a terminal or a log."""
    for name in names:
        if _CONTROL.search(name):
            kind = type(message).__name__
            raise ProtocolError(f"{kind}: control characters in the name {name[:80]!a}")


_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
#: How many items an `OfferedModel` has without those that came later.
_FIRST_MODEL_ITEMS: Final = 14
#: What leaves out of messages and their parts the last fields that came later: without them they
#: are what older peers read.
_SHORTEN: Final[dict[type, Callable[..., object]]] = {
    m.Submit: _short_submit,
    m.Measured: _short_measured,
    m.Services: _short_services,
    **{
        kind: _shortened(kind)
        for kind in (m.Heartbeat, m.Release, m.Accepted, m.Delivered, m.Welcome)
    },
    **{kind: _shortened(kind, late=2) for kind in (m.WorkerHello, m.ClientHello)},
}

_COLUMN_CHECKS: Final[dict[type, Callable[..., bool]]] = {
    m.Results: lambda it: len(it.ids) == len(it.tokens) == len(it.kinds) == len(it.payloads),
    m.Chunks: lambda it: len(it.ids) == len(it.tokens) == len(it.seqs) == len(it.payloads),
    m.Submit: _submit_is_bounded,
    m.Work: lambda it: all(len(g.ids) == len(g.tokens) == len(g.payloads) for g in it.groups),
    m.Release: lambda it: len(it.ids) == len(it.tokens),
    m.WorkerHello: _worker_hello_is_sound,
    m.ClientHello: _client_hello_is_sound,
    m.Services: lambda it: len(it.held_ids) == len(it.held_services) == len(it.held_models),
    m.Placed: lambda it: len(it.ids) == len(it.placements),
    m.Delivered: lambda it: len(it.ids) == len(it.payloads),
    m.Outcomes: lambda it: len(it.ids) == len(it.states) == len(it.payloads),
}


class _Opening(msgspec.Struct, array_like=True, frozen=True):
    """How a HELLO of any version begins; what follows is passed over."""

    tag: int
    version: int


_OPENING: Final = msgspec.msgpack.Decoder(_Opening)
_HELLO_TAGS: Final = (m.WorkerHello.__struct_config__.tag, m.ClientHello.__struct_config__.tag)
_TAGS_IN_COLUMNS: Final = frozenset(
    kind.__struct_config__.tag
    for kind in (m.Results, m.Release, m.Chunks, m.Submit, m.Watch, m.Unwatch, m.Delivered)
)

#: What a broker, a worker and a client may receive.
decode_to_broker: Final[Decode[m.ToBroker]] = _decoder(m.ToBroker, name="broker", is_strict=True)  # type: ignore[arg-type]
decode_to_worker: Final[Decode[m.ToWorker]] = _decoder(m.ToWorker, name="worker")  # type: ignore[arg-type]
decode_to_client: Final[Decode[m.ToClient]] = _decoder(m.ToClient, name="client")  # type: ignore[arg-type]
