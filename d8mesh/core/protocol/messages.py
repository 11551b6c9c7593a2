"""What peers say to each other: one frozen class per message, and a message carries a batch.

`docs/PROTOCOL.md` specifies the same for other languages. A message is a msgpack array
whose first item is its verb (`tag`), the rest its fields in the order given here.
Columns (`ids`, `tokens`, …) of one message have equal lengths; the codec checks it.

Payloads are opaque here: ``data`` and results are JSON's model in msgpack, made and read
only at the ends. A task id is ``SESSION-N``: 16 characters ``0-9a-v`` (80 random bits) that
the submitting side draws once, and a counter that it never uses twice.

What `frames` and `service_messages` hold is imported from here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, field

from d8mesh.core.protocol.frames import (
    MAX_BATCH_TASKS,
    MAX_FRAME_BYTES,
    MAX_NAMES,
    MAX_PAYLOAD_BYTES,
    MAX_SOURCE_CHARS,
    MAX_STREAM_BYTES,
    MAX_WARNINGS,
    MAX_WINDOW,
    MAX_WISH_CHARS,
    SOFT_FRAME_BYTES,
    Count,
    Frame,
    Ids,
    Name,
    Names,
    Payload,
    Payloads,
    Proof,
    Seconds,
    Session,
    TaskId,
    Text,
    Token,
    Tokens,
    Window,
)
from d8mesh.core.protocol.service_messages import (
    MAX_RECENT,
    MAX_SERVICES,
    Budget,
    Described,
    Measured,
    OfferedModel,
    OfferedService,
    Placed,
    Placement,
    Services,
    Warm,
)
from d8mesh.core.protocol.task import MAX_COUNTER, TaskState

#: Of the other two modules, what may be imported from here; what is defined here may be too.
__all__ = [
    "MAX_BATCH_TASKS", "MAX_FRAME_BYTES", "MAX_NAMES", "MAX_PAYLOAD_BYTES", "MAX_RECENT",
    "MAX_SERVICES", "MAX_SOURCE_CHARS", "MAX_STREAM_BYTES", "MAX_WARNINGS", "MAX_WINDOW",
    "MAX_WISH_CHARS", "SOFT_FRAME_BYTES", "Budget", "Count", "Described", "Ids", "Measured",
    "Name", "Names", "OfferedModel",
    "OfferedService", "Payload", "Payloads", "Placed", "Placement", "Proof", "Seconds", "Services",
    "Session", "TaskId", "Text", "Token", "Tokens", "Warm", "Window",
]  # fmt: skip

#: The protocol versions spoken here, newest first; HELLO carries the one it wants.
VERSIONS: Final = (1,)


def spoken_instead_of(version: int, spoken: Iterable[int] = VERSIONS) -> str:
    """Return what whoever says HELLO in another version is told."""
    return f"version {version}: spoken here are {', '.join(map(str, spoken))}"


#: How an attempt ended, one byte each in `Results.kinds`.
FAILED, SUCCEEDED, REFUSED = 0, 1, 2  # REFUSED: failed in a way that a retry cannot mend

#: How a task stands, one byte each in `Outcomes.states`.
COMPLETED_STATE, FAILED_STATE, CANCELLED_STATE, UNKNOWN_STATE, PRUNED_STATE = 1, 2, 3, 4, 5
#: What those of tasks that ended mean.
FINAL_STATES: Final = {
    COMPLETED_STATE: TaskState.COMPLETED,
    FAILED_STATE: TaskState.FAILED,
    CANCELLED_STATE: TaskState.CANCELLED,
}


# ---------------------------------------------------------------- both directions


class Goodbye(Frame, frozen=True, tag=1):
    """The sender leaves; a worker that says it holds nothing any more."""

    reason: Text


# ---------------------------------------------------------------- worker to broker


class WorkerHello(Frame, frozen=True, tag=10):
    """A worker opens, or reopens, its session.

    `held_ids` and `held_tokens` are the attempts it is running, has waiting, or has
    finished without an acknowledgement; the broker takes them over where they still hold.
    `trouble` says why it offers less than it could, in words for people. `proof` shows that
    the mesh key is known (`core.protocol.membership`); empty: no key is set.
    """

    version: int
    mesh: Name
    worker_id: Name
    boot_id: Name
    worker_type: Name
    machine_id: Name
    host: Text
    status_port: Annotated[int, Meta(ge=0, le=65535)]
    task_types: Names
    models: Names
    slots: Window
    window: Window
    held_ids: Ids
    held_tokens: Tokens
    trouble: Text = ""
    proof: Proof = b""


class Heartbeat(Frame, frozen=True, tag=11):
    """A worker lives. `held_ids` is all it holds, complete up to assignment number `work_seq`."""

    work_seq: Count
    window: Window
    running: Count
    stuck: Count
    task_types: Names
    models: Names
    held_ids: Ids
    trouble: Text = ""


class Results(Frame, frozen=True, tag=12):
    """Attempts that ended: `kinds` has one of FAILED, SUCCEEDED, REFUSED per task.

    Acknowledged as a whole by `Received` once committed.
    """

    seq: Count
    window: Window
    ids: Ids
    tokens: Tokens
    kinds: Annotated[bytes, Meta(max_length=MAX_BATCH_TASKS)]
    payloads: Payloads


class Release(Frame, frozen=True, tag=13):
    """Attempts given back; this costs no attempt as long as it is not done again and again.

    `reason`: why they could not be run; empty: they were not started.
    """

    window: Window
    ids: Ids
    tokens: Tokens
    reason: Text = ""


class Chunks(Frame, frozen=True, tag=14):
    """Partial output of running attempts; `seqs` count from 0 within an attempt."""

    ids: Ids
    tokens: Tokens
    seqs: Annotated[list[Count], Meta(max_length=MAX_BATCH_TASKS)]
    payloads: Payloads


# ---------------------------------------------------------------- client to broker


class ClientHello(Frame, frozen=True, tag=20):
    """A client opens, or reopens, its session; `takes_streams`: it reads `Streams` too.

    `proof` as in `WorkerHello`.
    """

    version: int
    mesh: Name
    session: Session
    host: Text
    takes_streams: bool = False
    proof: Proof = b""


class Group(Frame, frozen=True):
    """Tasks of one submit that share everything but their data.

    `model` is what `core.protocol.wish` reads: the name of a model is a preference (see the
    documented task types), with `=` before it a condition. `run_at` Unix seconds, `deadline_s`
    counts from acceptance, `max_attempts` 0 means the orchestrator's default. `source` says for
    people where they came from: ``DOOR ADDRESS PROGRAM``, see `core.protocol.source`.
    """

    type: Name
    priority: Annotated[int, Meta(ge=1, le=10)]
    payloads: Payloads
    model: Annotated[str, Meta(max_length=MAX_WISH_CHARS)] = ""
    deadline_s: Seconds | None = None
    max_attempts: Annotated[int, Meta(ge=0, le=100)] = 0
    is_fenced: bool = False
    run_at: Annotated[float, Meta(ge=0, le=1e11)] | None = None
    source: Annotated[str, Meta(max_length=MAX_SOURCE_CHARS)] = ""


class Submit(Frame, frozen=True, tag=21):
    """Tasks to be accepted all or none; their ids are ``session-first``, ``session-(first+1)``, …

    Sending the same again is answered the same. `key` is a user's idempotency key
    (empty: none), `digest` what its body hashes to. `is_listened`: the submitter listens to
    the partial output of these tasks, from the first piece on.
    """

    seq: Count
    session: Session
    first: Annotated[int, Meta(ge=0, le=MAX_COUNTER - MAX_BATCH_TASKS)]
    groups: Annotated[list[Group], Meta(min_length=1, max_length=MAX_BATCH_TASKS)]
    is_watched: bool = True
    key: Annotated[str, Meta(max_length=128)] = ""
    digest: Annotated[bytes, Meta(max_length=32)] = b""
    is_listened: bool = False


class Watch(Frame, frozen=True, tag=22):
    """Send the outcome of each of these, now or when it comes."""

    ids: Ids


class Unwatch(Frame, frozen=True, tag=23):
    """These outcomes are not awaited any more."""

    ids: Ids


class Listen(Frame, frozen=True, tag=24):
    """Start or stop sending this task's partial output."""

    id: TaskId
    is_on: bool


class Query(Frame, frozen=True, tag=25):
    """A question off the hot path; answered by `Answer` with the same number."""

    request: Count
    what: Name
    args: dict[str, object]


class Delivered(Frame, frozen=True, tag=26):
    """What these tasks asked and answered has reached who asked: it is to be erased.

    `payloads[i]` is what is kept of the result of `ids[i]`: all but what was said; empty: nothing
    is. Done after `keep_s`; of a task that is not finished, when it is. Acknowledged by `Received`
    once that is on disk; sending it again is answered the same.
    """

    seq: Count
    ids: Ids
    payloads: Payloads
    keep_s: Seconds = 0.0


#: What may be done with a member.
MemberChange: TypeAlias = Literal["approve", "revoke", "forget"]


class ChangeMembers(Frame, frozen=True, tag=27):
    """Let a key in, show one out, or forget one; answered by `Answer` with the same number.

    `who` is a fingerprint, or a worker id or host of a key let in before. Only keys of the
    orchestrator's own data folder may ask this.
    """

    request: Count
    action: MemberChange
    who: Name


# ---------------------------------------------------------------- broker to both


class Welcome(Frame, frozen=True, tag=40):
    """The session stands. `dropped_ids` are held attempts that hold no longer: stop them.

    `proof` shows that the orchestrator knows the mesh key; empty: it has none.
    """

    version: int
    epoch: Count
    broker_id: Name
    heartbeat_s: Seconds
    lease_s: Seconds
    dropped_ids: Ids
    proof: Proof = b""


class Rehello(Frame, frozen=True, tag=41):
    """The broker does not know this session: say HELLO again."""

    reason: Text


class Refused(Frame, frozen=True, tag=42):
    """A message was refused. `seq` is its number, 0 for a HELLO or a message without one.

    `code` is an error code of `d8mesh.errors`; `retry_after_s` > 0: try again then.
    """

    seq: Count
    code: Name
    message: Text
    retry_after_s: Seconds = 0.0


class Beat(Frame, frozen=True, tag=43):
    """The answer to a heartbeat, and a sign of life to clients."""

    epoch: Count


# ---------------------------------------------------------------- broker to worker


class WorkGroup(Frame, frozen=True):
    """Attempts of one type: run each `payloads[i]` as task `ids[i]`, show `tokens[i]` after.

    `timeout_s` is the attempt's time from its start; `is_listened`: somebody wants chunks.
    """

    type: Name
    timeout_s: Seconds
    is_listened: bool
    ids: Ids
    tokens: Tokens
    payloads: Payloads


class Work(Frame, frozen=True, tag=50):
    """Attempts handed out, numbered by `seq` within the session.

    `received` are numbers of `Results` that are on disk, as in `Received`.
    """

    seq: Count
    groups: Annotated[list[WorkGroup], Meta(max_length=MAX_BATCH_TASKS)]
    received: Annotated[list[Count], Meta(max_length=MAX_BATCH_TASKS)] = field(default_factory=list)


class Received(Frame, frozen=True, tag=51):
    """The `Results`, or `Delivered`, with this number are on disk; the sender may forget them."""

    seq: Count


class Stop(Frame, frozen=True, tag=52):
    """These attempts are no longer wanted: cancelled, past the deadline, or superseded."""

    ids: Ids
    reason: Text


class Listening(Frame, frozen=True, tag=53):
    """Somebody listens to these tasks (or nobody does any more)."""

    ids: Ids
    is_on: bool


class Recall(Frame, frozen=True, tag=54):
    """Give back up to this many attempts that have not started: another worker idles."""

    count: Count


# ---------------------------------------------------------------- broker to client


class Accepted(Frame, frozen=True, tag=60):
    """The `Submit` with this number is on disk.

    `session` and `first` name its tasks: for a repeated idempotency key those of the first time.
    `warnings` are for people: that nobody offers a type, say.
    """

    seq: Count
    session: Session
    first: Count
    is_repeat: bool = False
    warnings: Annotated[list[Text], Meta(max_length=MAX_WARNINGS)] = field(default_factory=list)


class Outcomes(Frame, frozen=True, tag=61):
    """Finished tasks: `states` one byte each, `payloads` their results (an object, msgpack)."""

    ids: Ids
    states: Annotated[bytes, Meta(max_length=MAX_BATCH_TASKS)]
    payloads: Payloads


class Stream(Frame, frozen=True, tag=62):
    """Partial output of `attempt` of one task; chunk i has the number `first_seq + i`.

    No payloads: a new attempt starts, forget what came before.
    """

    id: TaskId
    attempt: Count
    first_seq: Count
    payloads: Payloads


class Streams(Frame, frozen=True, tag=64):
    """Partial output of several tasks that came at the same time, for who reads that together."""

    streams: Annotated[list[Stream], Meta(min_length=1, max_length=MAX_BATCH_TASKS)]


class Answer(Frame, frozen=True, tag=63):
    """The answer to an `Query`: a body, or an error `code` with a message in the body."""

    request: Count
    code: Annotated[str, Meta(max_length=128)]
    body: dict[str, object]


_OfServices: TypeAlias = Services | Measured | Described
_FromWorker: TypeAlias = WorkerHello | Heartbeat | Results | Release | Chunks | _OfServices
#: What is answered by `Answer`.
ClientQuestion: TypeAlias = Query | ChangeMembers
_FromClient: TypeAlias = (
    ClientHello | Submit | Watch | Unwatch | Listen | ClientQuestion | Delivered
)
_ToBoth: TypeAlias = Goodbye | Welcome | Rehello | Refused | Beat
ToBroker: TypeAlias = Goodbye | _FromWorker | _FromClient
ToWorker: TypeAlias = _ToBoth | Work | Received | Stop | Listening | Recall | Placed | Warm
ToClient: TypeAlias = _ToBoth | Received | Accepted | Outcomes | Stream | Streams | Answer
Message: TypeAlias = ToBroker | ToWorker | ToClient
