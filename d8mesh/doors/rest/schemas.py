"""Bodies of requests: their fields, their bounds, and how what is wrong is told.

Each call's schema makes of a body's bytes, in one go, what the call works with.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from itertools import islice
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

from d8mesh.core.protocol.json_model import check_json
from d8mesh.core.protocol.messages import MAX_BATCH_TASKS, MAX_NAMES, MAX_WARNINGS, Group
from d8mesh.errors import InvalidTaskError
from d8mesh.http.strict import parse_json
from d8mesh.nodes.client.groups import groups_of

_T = TypeVar("_T")
ShortText = Annotated[str, Meta(min_length=1, max_length=128)]
Object = dict[str, Any]

#: Capabilities are kept for every worker and shown in every list.
MAX_CAPABILITIES_BYTES: Final = 16_384
#: Of an unknown key, as much as is compared and shown.
SHOWN_KEY_CHARS: Final = 64
IDEMPOTENCY_KEY: Final = re.compile(r"[ -~]{1,128}", re.ASCII)
_MISSING_FIELD: Final = re.compile(r"Object missing required field `(\w+)`(?: - at `\$\.?(.*)`)?")
_AT: Final = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)


class Capabilities(Struct):
    """What decides which tasks a worker gets; other keys are as older workers have them."""

    task_types: Annotated[list[ShortText], Meta(max_length=MAX_NAMES)] | None = None


class Register(Struct):
    """``POST /api/workers/register``; other keys are of no interest."""

    worker_id: ShortText
    worker_type: ShortText
    capabilities: Object
    status: str | None = None


class Beating(Struct):
    """``POST /api/workers/{id}/heartbeat``, if it has a body."""

    task_ids: list[ShortText] | None = None


class WorkerId(Struct):
    """``POST /api/workers/unregister``."""

    worker_id: ShortText


class Who(Struct):
    """``POST /api/join/…``: a fingerprint, or the worker id or host of a key let in before."""

    who: ShortText


class Report(Struct):
    """``POST /api/tasks/{id}/result``; the result may be anything, and no object is a failure."""

    worker_id: ShortText
    result: Any


class NamedReport(Struct):
    """``POST /api/workers/results``."""

    task_id: ShortText
    worker_id: ShortText
    result: Any


_R = TypeVar("_R", Report, NamedReport)


class SubmitOne(Struct):
    """``POST /api/tasks/submit``, and one task of a batch."""

    type: ShortText
    data: Object
    priority: Annotated[int, Meta(ge=1, le=10)] = 5
    deadline_s: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=100)] | None = None
    fenced: bool = False
    run_at: Annotated[float, Meta(ge=0, le=1e11)] | None = None
    listen: bool = False


SUBMIT_KEYS: Final = frozenset(SubmitOne.__struct_fields__)


class SubmitBatch(Struct):
    """``POST /api/tasks/submit_batch``."""

    tasks: Annotated[list[SubmitOne], Meta(min_length=1, max_length=MAX_BATCH_TASKS)]


class Wanted(NamedTuple):
    """What a submit asks for: its tasks, whether their output is kept, what nobody reads in it."""

    groups: list[Group]
    is_listened: bool
    warnings: list[str]


def submit_of(body: bytes) -> Wanted:
    """Return what ``POST /api/tasks/submit`` asks for."""
    value = parse_json(body)
    task = convert(value, SubmitOne)
    return Wanted(groups_of([task], is_batch=False), task.listen, unknown_keys(value, SubmitOne))


def batch_of(body: bytes) -> Wanted:
    """Return what ``POST /api/tasks/submit_batch`` asks for."""
    value = parse_json(body)
    tasks = convert(value, SubmitBatch).tasks
    warnings = unknown_keys(value, SubmitBatch)
    for each in value["tasks"]:
        if not SUBMIT_KEYS.issuperset(each):
            warnings += unknown_keys(each, SubmitOne)
    groups = groups_of(tasks, is_batch=True)
    if len({task.listen for task in tasks}) > 1:
        raise InvalidTaskError("listen: expected the same of all tasks of a batch")
    return Wanted(groups, tasks[0].listen, warnings)


def registration_of(body: bytes) -> Register:
    """Return who registers: a worker that can be shown, kept and polled for."""
    worker = body_of(Register, body)
    if not worker.worker_id.isprintable() or "/" in worker.worker_id:
        raise InvalidTaskError("worker_id: expected printable characters without a slash")
    if not worker.worker_type.isprintable():
        raise InvalidTaskError("worker_type: expected printable characters")
    check_json(worker.capabilities, "capabilities")
    convert(worker.capabilities, Capabilities, path="capabilities.")
    size = len(msgspec.msgpack.encode(worker.capabilities))
    if size > MAX_CAPABILITIES_BYTES:
        raise InvalidTaskError(
            f"capabilities: {size} bytes, expected at most {MAX_CAPABILITIES_BYTES}"
        )
    return worker


def body_of(kind: type[_T], body: bytes) -> _T:
    """Return a body that is a `kind`."""
    return convert(parse_json(body), kind)


def object_of(body: bytes) -> Object:
    """Return an object that may be missing or null; it is empty then."""
    value = parse_json(body) if body else None
    return {} if value is None else convert(value, dict)


def beating_of(body: bytes) -> Beating:
    """Return what a heartbeat says."""
    return convert(object_of(body), Beating)


def report_of(kind: type[_R], body: bytes) -> _R:
    """Return a report: a `NamedReport`, or a `Report` whose task stands in the path."""
    report = body_of(kind, body)
    check_json(report.result, "result")
    return report


def convert(value: object, kind: type[_T], *, path: str = "") -> _T:
    """Return `value`, which stands at `path` of a body, as a `kind`, or name what is wrong there.

    A null means that a field is not given, if it need not be.
    """
    if not isinstance(value, dict):
        raise InvalidTaskError(f"the body is {_name(value)}, expected an object")
    try:
        return msgspec.convert(_without_nulls(value, kind), kind)
    except msgspec.ValidationError as error:
        raise InvalidTaskError(f"{path}{_told(str(error))}") from error


def unknown_keys(body: dict[str, Any], kind: type[Struct]) -> list[str]:
    """Return a warning for each key that nobody reads, with the nearest that is read."""
    known = kind.__struct_fields__
    told = []
    for key in islice((key for key in body if key not in known), MAX_WARNINGS):
        near = get_close_matches(key[:SHOWN_KEY_CHARS], known, n=1)
        mean = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        told.append(f"unknown key {key[:SHOWN_KEY_CHARS]!r}: {mean}")
    return told


def _without_nulls(value: Any, kind: object) -> Any:
    """Return an object without the nulls of fields that may be left out."""
    if not isinstance(value, dict) or not (isinstance(kind, type) and issubclass(kind, Struct)):
        return value
    known, defaults = kind.__struct_fields__, kind.__struct_defaults__
    optional = known[len(known) - len(defaults) :]
    if any(item is None and key in optional for key, item in value.items()):
        value = {k: item for k, item in value.items() if item is not None or k not in optional}
    if kind is SubmitBatch and isinstance(tasks := value.get("tasks"), list):
        return value | {"tasks": [_without_nulls(task, SubmitOne) for task in tasks]}
    return value


def idempotency_key(header: str | None) -> str:
    """Return the key of a submit, empty if there is none."""
    if header is None:
        return ""
    if not IDEMPOTENCY_KEY.fullmatch(header):
        raise InvalidTaskError("Idempotency-Key: expected 1 to 128 printable ASCII characters")
    return header


def _told(text: str) -> str:
    """Return msgspec's message in the words of the contract, the field first."""
    if missing := _MISSING_FIELD.fullmatch(text):
        name, path = missing.groups()
        return f"Missing field: {path + '.' if path else ''}{name}"
    placed = _AT.fullmatch(text)
    return (f"{placed[2]}: {placed[1]}" if placed else text)[:300]


def _name(value: object) -> str:
    names = {list: "an array", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
