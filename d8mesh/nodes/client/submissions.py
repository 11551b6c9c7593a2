"""From a caller's data to submissions of the session: checked, encoded, cut to size."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypedDict, cast

import msgspec

from d8mesh.config import MODEL_PATTERN
from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.chat import MODEL_TYPES
from d8mesh.core.protocol.json_model import as_json, packed_json
from d8mesh.core.protocol.messages import (
    MAX_BATCH_TASKS,
    MAX_FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    SOFT_FRAME_BYTES,
    Group,
)
from d8mesh.core.protocol.model_names import STRICT_MARK
from d8mesh.core.protocol.task import parse_id
from d8mesh.errors import InvalidTaskError, PayloadTooLargeError
from d8mesh.nodes.client.timeouts import bounded

#: Tasks of one submission: a commit of the broker's stays short, its cost is spread thin.
SUBMISSION_TASKS: Final = 1000
_MODEL: Final = re.compile(MODEL_PATTERN, re.ASCII)
MAX_TYPE_CHARS: Final = 128
MAX_KEY_CHARS: Final = 128
#: The most that a payload's length, and a group's own fields, take in a frame.
_HEAD_BYTES: Final = 5
_GROUP_BYTES: Final = 1200


class SubmitOptions(TypedDict, total=False):
    """How a task is to be run; all of it may be left out, or None.

    priority: 1 to 10, higher first (5).
    timeout: how long to wait for room when the queue is full (as long as needed).
    deadline_s: the task fails if it is not finished by then, from now (none).
    max_attempts: errors and losses of workers it may use up (the orchestrator's default).
    fenced: only the current attempt may finish it (no).
    run_at: not before this time, Unix seconds (at once).
    listen: keep the partial output from its first piece on, for `Task.stream` (no).
    """

    priority: int | None
    timeout: float | None
    deadline_s: float | None
    max_attempts: int | None
    fenced: bool | None
    run_at: float | None
    listen: bool


class Sent(NamedTuple):
    """What became of a submit: its ids, whether its key was used before, and warnings."""

    ids: list[str]
    is_repeat: bool
    warnings: tuple[str, ...] = ()


class Post(NamedTuple):
    """How a submission is to travel.

    key, digest: the idempotency key and what the body hashes to; is_watched, is_listened: its
    outcomes, its partial output are wanted; is_patient: it waits for room in a full queue.
    """

    key: str = ""
    digest: bytes = b""
    is_watched: bool = True
    is_listened: bool = False
    is_patient: bool = True


_OPTIONS: Final = SubmitOptions.__optional_keys__

#: What tasks must share to travel in one group: everything but their data.
Kind: TypeAlias = tuple[str, int, str, float | None, int, bool, float | None]


def kind_of(kind: str, model: str, options: SubmitOptions) -> Kind:
    """Return what tasks of this type and with these options share.

    ``timeout_s`` among the options becomes `timeout`, as of `patience.takes_timeout_s`.

    Raises:
        InvalidTaskError: a type or an option that is not allowed.
    """

    if not isinstance(kind, str) or not 1 <= len(kind) <= MAX_TYPE_CHARS:
        raise InvalidTaskError(f"type: saw {kind!r:.80}, expected 1 to {MAX_TYPE_CHARS} characters")
    if not options and kind.isascii():
        return kind, 5, model, None, 0, False, None
    check_encodable(kind, "type")
    named = cast("dict[str, Any]", options)
    if "timeout_s" in named:
        named["timeout"] = named.pop("timeout_s")
    unknown = options.keys() - _OPTIONS
    if unknown:
        names = ", ".join(sorted(unknown))
        raise InvalidTaskError(f"{names}: no option of a submit; known are {sorted(_OPTIONS)}")
    bounded(options.get("timeout"))
    return (
        kind,
        _whole(options, "priority", 5, 1, 10),
        model,
        _number(options, "deadline_s", 1e9),
        _whole(options, "max_attempts", 0, 0, 100),
        bool(options.get("fenced")),
        _number(options, "run_at", 1e11),
    )


def _whole(options: SubmitOptions, name: str, default: int, least: int, most: int) -> int:
    value = options.get(name)
    if value is None:  # not given
        return default
    if type(value) is not int or not least <= value <= most:
        raise InvalidTaskError(f"{name}: saw {value!r:.80}, expected {least} to {most}")
    return value


def _number(options: SubmitOptions, name: str, most: float) -> float | None:
    value = options.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= most:  # type: ignore[operator]
        raise InvalidTaskError(f"{name}: saw {value!r:.80}, expected seconds, 0 to {most:g}")
    return float(value)  # type: ignore[arg-type]


def refuse_listening(options: SubmitOptions) -> None:
    """Make sure that nobody asks for partial output where there is no task to stream it from.

    Raises:
        InvalidTaskError: ``listen`` is set.
    """
    if options.get("listen"):
        raise InvalidTaskError(
            "listen: here come results only; use submit(..., listen=True) and Task.stream()"
        )


def group_of(kind: Kind, payloads: list[bytes]) -> Group:
    """Return the group of tasks that share `kind`."""
    name, priority, model, deadline_s, max_attempts, fenced, run_at = kind
    return Group(name, priority, payloads, model, deadline_s, max_attempts, fenced, run_at)


def kind_in(group: Group) -> Kind:
    """Return what the tasks of a group share."""
    return (
        group.type,
        group.priority,
        group.model,
        group.deadline_s,
        group.max_attempts,
        group.is_fenced,
        group.run_at,
    )


def model_of(kind: str, data: Mapping[str, Any], path: str = "") -> str:
    """Return what the data at `path` wishes for, as `Group.model` has it, or nothing.

    Raises:
        InvalidTaskError: the wish is no name of a model, or ``model_strict`` no boolean.
    """
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        return ""
    model, is_strict = data.get("model"), data.get("model_strict")
    if not (is_strict is None or isinstance(is_strict, bool)):
        raise InvalidTaskError(
            f"{path}data.model_strict: saw {str(is_strict)[:60]!r}, expected true or false"
        )
    if model is None or model == "":
        return ""
    if type(model) is not str:
        model = as_json(model, f"{path}data.model")
    if not isinstance(model, str) or not _MODEL.fullmatch(model):
        raise InvalidTaskError(
            f"{path}data.model: saw {str(model)[:60]!r}, expected a model name such as "
            "deepseek-r1:8b"
        )
    return STRICT_MARK + model if is_strict else model


def cut(kind: str, datas: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, list[bytes]]]:
    """Yield (model, payloads) of runs of tasks that fit one submission."""
    payloads: list[bytes] = []
    size, model = 0, ""
    for data in datas:
        payload = encode_data(data)
        wished = model_of(kind, data)
        is_full = len(payloads) == SUBMISSION_TASKS or size + len(payload) > SOFT_FRAME_BYTES
        if payloads and (is_full or wished != model):
            yield model, payloads
            payloads, size = [], 0
        model = wished
        payloads.append(payload)
        size += len(payload)
    if payloads:
        yield model, payloads


def encode_data(data: Mapping[str, Any]) -> bytes:
    """Return `data` as msgpack, checked to be a JSON object, or made one."""
    if type(data) is not dict and not isinstance(data, Mapping):
        raise InvalidTaskError(f"data: saw {type(data).__name__}, expected a dict")
    payload = packed_json(data, "data")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLargeError(
            f"data of {len(payload)} bytes: at most {MAX_PAYLOAD_BYTES}; hand over large things "
            "as files"
        )
    return payload


def check_encodable(value: object, what: str) -> bytes:
    """Return `value` as msgpack; what cannot be sent is found by the caller's thread.

    Raises:
        InvalidTaskError: a text that is no Unicode (half a surrogate pair), or another type.
    """
    try:
        return msgspec.msgpack.encode(value)
    except (UnicodeEncodeError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidTaskError(f"{what}: this cannot be sent: {error}") from error


def check_key(key: str) -> None:
    """Make sure that `key` may be an idempotency key.

    Raises:
        InvalidTaskError: it is no text of 1 to 128 characters.
    """
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_CHARS:
        raise InvalidTaskError(
            f"idempotency_key: saw {key!r:.80}, expected 1 to {MAX_KEY_CHARS} characters"
        )
    check_encodable(key, "idempotency_key")


def size_of(groups: Sequence[Group]) -> tuple[int, int]:
    """Return how many tasks and bytes of data these are.

    Raises:
        InvalidTaskError: none, or more than one message may carry.
        PayloadTooLargeError: together they are larger than a message may be.
    """
    count = sum(len(group.payloads) for group in groups)
    size = sum(sum(map(len, group.payloads)) for group in groups)
    if not 0 < count <= MAX_BATCH_TASKS:
        raise InvalidTaskError(f"saw {count} tasks, expected 1 to {MAX_BATCH_TASKS} at once")
    if size + count * _HEAD_BYTES + len(groups) * _GROUP_BYTES > MAX_FRAME_BYTES:
        raise PayloadTooLargeError(
            f"{count} tasks of {size} bytes together: at most {MAX_FRAME_BYTES} at once"
        )
    return count, size


def digest_of(groups: Sequence[Group]) -> bytes:
    """Return what a submit's body hashes to, for its idempotency key."""
    return hashlib.blake2b(msgspec.msgpack.encode(list(groups)), digest_size=16).digest()


def awaiting(task_id: str) -> Submission:
    """Return a submission in which the outcome of any one task can arrive.

    Raises:
        InvalidTaskError: that is no text.
        UnknownTaskError: that is no id of a task.
    """
    if not isinstance(task_id, str):
        raise InvalidTaskError(f"task id: saw {task_id!r:.80}, expected a text")
    key = parse_id(task_id)
    submission = Submission(key.session, key.n, [], 1, is_accepted=True)
    submission.states, submission.payloads, submission.missing = bytearray(1), [None], 1
    return submission
