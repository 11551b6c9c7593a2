"""From a caller's options and data to the groups of a submit: checked, encoded, cut to size.

A group without payloads is what tasks share: their data joins it, or they join another that is
alike (``==``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol, TypedDict, cast

import msgspec
from msgspec.structs import astuple, replace

from d8mesh.core.protocol.json_model import packed_json
from d8mesh.core.protocol.messages import (
    MAX_BATCH_TASKS,
    MAX_FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    SOFT_FRAME_BYTES,
    Group,
)
from d8mesh.errors import InvalidTaskError, PayloadTooLargeError, TaskRejectedError
from d8mesh.nodes.client.timeouts import bounded
from d8mesh.nodes.client.wishes import wish_of

#: Tasks of one submission: a commit of the broker's stays short, its cost is spread thin.
SUBMISSION_TASKS: Final = 1000
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


class TaskFields(Protocol):
    """A task of a REST body, its types and bounds checked; `max_attempts` None: not given."""

    type: str
    data: dict[str, Any]
    priority: int
    deadline_s: float | None
    max_attempts: int | None
    fenced: bool
    run_at: float | None


_OPTIONS: Final = SubmitOptions.__optional_keys__


def group_of(kind: str, model: str, options: SubmitOptions) -> Group:
    """Return what tasks of this type, wish for a model and options share.

    ``timeout_s`` among the options becomes `timeout`, as of `timeouts.takes_timeout_s`.

    Raises:
        InvalidTaskError: a type or an option that is not allowed.
    """
    if not isinstance(kind, str) or not 1 <= len(kind) <= MAX_TYPE_CHARS:
        raise InvalidTaskError(f"type: saw {kind!r:.80}, expected 1 to {MAX_TYPE_CHARS} characters")
    is_encodable = kind.isascii()
    if not options and is_encodable:
        return _plain_group(kind, model)
    if not is_encodable:
        check_encodable(kind, "type")
    named = cast("dict[str, Any]", options)
    if "timeout_s" in named:
        named["timeout"] = named.pop("timeout_s")
    if not options.keys() <= _OPTIONS:
        names = ", ".join(sorted(options.keys() - _OPTIONS))
        raise InvalidTaskError(f"{names}: no option of a submit; known are {sorted(_OPTIONS)}")
    bounded(options.get("timeout"))
    return Group(
        kind,
        _whole(options, "priority", 5, 1, 10),
        [],
        model,
        _number(options, "deadline_s", 1e9),
        _whole(options, "max_attempts", 0, 0, 100),
        bool(options.get("fenced")),
        _number(options, "run_at", 1e11),
    )


@lru_cache(256)
def _plain_group(kind: str, model: str) -> Group:
    """Return what tasks without options share: the same each time, for it is compared often."""
    return Group(kind, 5, [], model)


def filled(shared: Group, payloads: list[bytes]) -> Group:
    """Return the group of tasks with this data that share `shared`."""
    return replace(shared, payloads=payloads)


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
    """Raise InvalidTaskError for ``listen`` where there is no task to stream output from."""
    if options.get("listen"):
        raise InvalidTaskError(
            "listen: here come results only; use submit(..., listen=True) and Task.stream()"
        )


class Template:
    """What the tasks of one type with the same options share, for each model that they wish for.

    Raises:
        InvalidTaskError: a type or an option that is not allowed.
    """

    def __init__(self, kind: str, options: SubmitOptions) -> None:
        self._type, self._options = kind, options
        self._shared = {"": group_of(kind, "", options)}
        self.timeout_s = options.get("timeout")
        self.is_listened = bool(options.get("listen"))

    def of(self, data: Mapping[str, Any]) -> tuple[Group, bytes]:
        """Return what a task shares, and its data; raises what `encode_data` and `wish_of` do."""
        payload = encode_data(data)
        return self._of_model(wish_of(self._type, data)), payload

    def cut(
        self,
        datas: Iterable[Mapping[str, Any]],
        on_error: Callable[[TaskRejectedError], object] | None = None,
    ) -> Iterator[Group]:
        """Yield groups that fit one submission each.

        Args:
            on_error: called, in order, with the error of a task that cannot be submitted; None:
                it is raised.
        """
        payloads: list[bytes] = []
        size, model = 0, ""
        for data in datas:
            try:
                payload = encode_data(data)
                wished = wish_of(self._type, data)
            except TaskRejectedError as error:
                if on_error is None:
                    raise
                if payloads:
                    yield filled(self._of_model(model), payloads)
                    payloads, size = [], 0
                on_error(error)
                continue
            is_full = len(payloads) == SUBMISSION_TASKS or size + len(payload) > SOFT_FRAME_BYTES
            if payloads and (is_full or wished != model):
                yield filled(self._of_model(model), payloads)
                payloads, size = [], 0
            model = wished
            payloads.append(payload)
            size += len(payload)
        if payloads:
            yield filled(self._of_model(model), payloads)

    def _of_model(self, model: str) -> Group:
        shared = self._shared.get(model)
        if shared is None:
            shared = self._shared[model] = group_of(self._type, model, self._options)
        return shared


def groups_of(tasks: Iterable[TaskFields], *, is_batch: bool) -> list[Group]:
    """Return the tasks of a REST body as groups of what can share one, in their order.

    Raises:
        InvalidTaskError: data is not of JSON's model, a type is not a usable name, or what is
            wished for is not well formed.
        PayloadTooLargeError: the data of one task is too large.
    """
    groups: list[Group] = []
    last: Group | None = None
    for index, task in enumerate(tasks):
        path = f"tasks[{index}]." if is_batch else ""
        if not task.type.isprintable():
            raise InvalidTaskError(f"{path}type: expected printable characters")
        payload = encode_data(task.data, f"{path}data")
        shared = Group(
            task.type,
            task.priority,
            [],
            wish_of(task.type, task.data, path, is_one=not is_batch),
            task.deadline_s,
            task.max_attempts or 0,
            task.fenced,
            task.run_at,
        )
        if shared == last:
            groups[-1].payloads.append(payload)
        else:
            groups.append(filled(shared, [payload]))
            last = shared
    return groups


def encode_data(data: Mapping[str, Any], path: str = "data") -> bytes:
    """Return the data at `path` as msgpack, checked to be a JSON object, or made one."""
    if type(data) is not dict and not isinstance(data, Mapping):
        raise InvalidTaskError(f"data: saw {type(data).__name__}, expected a dict")
    payload = packed_json(data, path)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLargeError(
            f"{path}: {len(payload)} bytes, at most {MAX_PAYLOAD_BYTES}; hand over large "
            "things as files"
        )
    return payload


def check_encodable(value: object, what: str) -> bytes:
    """Return `value` as msgpack; InvalidTaskError, on the caller's thread: it cannot be sent."""
    try:
        return msgspec.msgpack.encode(value)
    except (UnicodeEncodeError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidTaskError(f"{what}: this cannot be sent: {error}") from error


def check_key(key: str) -> None:
    """Raise InvalidTaskError unless `key` may be an idempotency key: 1 to 128 characters."""
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
    """Return what a submit's body hashes to, for its idempotency key; not where it came from."""
    bodies = [astuple(group)[:-1] for group in groups]
    return hashlib.blake2b(msgspec.msgpack.encode(bodies), digest_size=16).digest()
