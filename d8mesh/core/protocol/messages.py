"""What peers say to each other: one frozen class per message, and a message carries a batch.

`docs/PROTOCOL.md` specifies the same for other languages. A message is a msgpack array
whose first item is its verb (`tag`), the rest its fields in the order given here.
Columns (`ids`, `tokens`, …) of one message have equal lengths; the codec checks it.

Payloads are opaque here: ``data`` and results are JSON's model in msgpack, made and read
only at the ends. A task id is ``SESSION-N``: 16 characters ``0-9a-v`` (80 random bits) that
the submitting side draws once, and a counter that it never uses twice.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

from d8mesh.core.protocol.task import MAX_COUNTER, TaskState

#: The protocol versions spoken here, newest first; HELLO carries the one it wants.
VERSIONS: Final = (1,)

#: Most tasks in one message (and in one atomic submit_batch): bounds a commit and a decode.
MAX_BATCH_TASKS: Final = 10_000
#: Largest data or result of one task: 32 MB; larger things belong into files.
MAX_PAYLOAD_BYTES: Final = 32 * 1024 * 1024
#: Largest frame: one largest payload and its envelope, or a batch cut to this size.
MAX_FRAME_BYTES: Final = MAX_PAYLOAD_BYTES + 1024 * 1024
#: Senders cut batches here, so that one message never holds the loop for long.
SOFT_FRAME_BYTES: Final = 4 * 1024 * 1024
#: Partial output is cut here: a thousand such messages may wait for who reads too slowly.
MAX_STREAM_BYTES: Final = 256 * 1024
#: Task types and models one worker may list: bounds the placement index.
MAX_NAMES: Final = 1000
#: Warnings beside the acknowledgement of one submit: nobody reads more.
MAX_WARNINGS: Final = 20
#: Most attempts a worker may hold at once: bounds a heartbeat's list.
MAX_WINDOW: Final = 4096
#: LLM services one worker may reach, and requests of the last minute it tells of each model.
MAX_SERVICES: Final = 64
MAX_RECENT: Final = 1000
#: Of what a task wishes for, as `core.protocol.wish` writes it.
MAX_WISH_CHARS: Final = 1000

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
Text: TypeAlias = Annotated[str, Meta(max_length=1000)]
TaskId: TypeAlias = Annotated[str, Meta(min_length=18, max_length=30)]
Session: TypeAlias = Annotated[str, Meta(min_length=16, max_length=16, pattern="^[0-9a-v]{16}$")]
Token: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]
Window: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_WINDOW)]
Payload: TypeAlias = Annotated[bytes, Meta(max_length=MAX_PAYLOAD_BYTES)]
Names: TypeAlias = Annotated[list[Name], Meta(max_length=MAX_NAMES)]
Ids: TypeAlias = Annotated[list[TaskId], Meta(max_length=MAX_BATCH_TASKS)]
Tokens: TypeAlias = Annotated[list[Token], Meta(max_length=MAX_BATCH_TASKS)]
Payloads: TypeAlias = Annotated[list[Payload], Meta(max_length=MAX_BATCH_TASKS)]

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


class _Frame(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Common layout options of everything on the wire."""


# ---------------------------------------------------------------- both directions


class Goodbye(_Frame, frozen=True, tag=1):
    """The sender leaves; a worker that says it holds nothing any more."""

    reason: Text


# ---------------------------------------------------------------- worker to broker


class WorkerHello(_Frame, frozen=True, tag=10):
    """A worker opens, or reopens, its session.

    `held_ids` and `held_tokens` are the attempts it is running, has waiting, or has
    finished without an acknowledgement; the broker takes them over where they still hold.
    `trouble` says why it offers less than it could, in words for people.
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


class Heartbeat(_Frame, frozen=True, tag=11):
    """A worker lives. `held_ids` is all it holds, complete up to assignment number `work_seq`."""

    work_seq: Count
    window: Window
    running: Count
    stuck: Count
    task_types: Names
    models: Names
    held_ids: Ids
    trouble: Text = ""


class Results(_Frame, frozen=True, tag=12):
    """Attempts that ended: `kinds` has one of FAILED, SUCCEEDED, REFUSED per task.

    Acknowledged as a whole by `Received` once committed.
    """

    seq: Count
    window: Window
    ids: Ids
    tokens: Tokens
    kinds: Annotated[bytes, Meta(max_length=MAX_BATCH_TASKS)]
    payloads: Payloads


class Release(_Frame, frozen=True, tag=13):
    """Attempts given back; this costs no attempt as long as it is not done again and again.

    `reason`: why they could not be run; empty: they were not started.
    """

    window: Window
    ids: Ids
    tokens: Tokens
    reason: Text = ""


class Chunks(_Frame, frozen=True, tag=14):
    """Partial output of running attempts; `seqs` count from 0 within an attempt."""

    ids: Ids
    tokens: Tokens
    seqs: Annotated[list[Count], Meta(max_length=MAX_BATCH_TASKS)]
    payloads: Payloads


class Budget(_Frame, frozen=True):
    """What an account with a service in the cloud allows, and what this worker has used of it.

    A bound of 0 is none. A minute is any 60 seconds. `recent` is, of each request that this worker
    sent in the last minute, how many seconds ago that was, and its tokens; `day_requests` and
    `day_tokens` count what it sent since the day began that ends in `day_left_s`. For
    `blocked_s` from now nothing may be sent: `blocked_why`.
    """

    minute_requests: Count = 0
    minute_tokens: Count = 0
    day_requests_bound: Count = 0
    day_tokens_bound: Count = 0
    recent: Annotated[list[tuple[Seconds, Count]], Meta(max_length=MAX_RECENT)] = []
    day_requests: Count = 0
    day_tokens: Count = 0
    day_left_s: Seconds = 0.0
    blocked_s: Seconds = 0.0
    blocked_why: Text = ""


class OfferedModel(_Frame, frozen=True):
    """A model that a service has installed, and how it did so far; 0 where nothing is known.

    `name` is what the service calls it, `can` what it is capable of, in Ollama's words
    (completion, tools, vision, insert, thinking, embedding); empty: the service does not tell.
    `slots` is how many requests it has proved to answer at the same time, and one to try if
    that is not settled. `requests`, `prompt_tokens` and `output_tokens` count since the worker's
    start. `paused` says why it gets no request until a probe has succeeded; empty: it gets them.
    """

    name: Name
    digest: Annotated[str, Meta(max_length=128)] = ""
    can: Annotated[list[Name], Meta(max_length=20)] = []
    size_bytes: Count = 0
    is_loaded: bool = False
    slots: Window = 1
    load_s: Seconds = 0.0
    prompt_tokens_per_s: Seconds = 0.0
    output_tokens_per_s: Seconds = 0.0
    requests: Count = 0
    prompt_tokens: Count = 0
    output_tokens: Count = 0
    paused: Text = ""
    budget: Budget | None = None


class OfferedService(_Frame, frozen=True):
    """An LLM service that a worker reaches.

    `id` is the same at all workers that reach the same one (an Ollama: machine id and port, or
    address and port; in the cloud: provider and a hash of the key). `kind` is its row in
    `backends.BACKENDS`. `slots` bounds the requests of all its models together (0: no bound).
    `default` runs what wishes for no model. `why`: the reason if it offers nothing now.
    """

    id: Name
    kind: Name
    machine: Text
    url: Text
    is_cloud: bool
    slots: Window
    default: Annotated[str, Meta(max_length=128)]
    models: Annotated[list[OfferedModel], Meta(max_length=MAX_NAMES)]
    why: Text = ""


class Services(_Frame, frozen=True, tag=15):
    """All LLM services that a worker reaches, and the task types that they answer.

    Said after each `Welcome` and whenever more changes than `Measured` says. Tasks of these types
    come with a `Placed` from then on, beside the worker's window: the services' slots
    bound them. `held_ids[i]` runs at the service `held_services[i]` with `held_models[i]`.
    """

    types: Names
    services: Annotated[list[OfferedService], Meta(max_length=MAX_SERVICES)]
    held_ids: Ids
    held_services: Annotated[list[Name], Meta(max_length=MAX_BATCH_TASKS)]
    held_models: Annotated[list[Name], Meta(max_length=MAX_BATCH_TASKS)]


class Measured(_Frame, frozen=True, tag=16):
    """Models of one service, as they are now: each replaces what was said of its name."""

    service: Name
    models: Annotated[list[OfferedModel], Meta(max_length=MAX_NAMES)]


# ---------------------------------------------------------------- client to broker


class ClientHello(_Frame, frozen=True, tag=20):
    """A client opens, or reopens, its session."""

    version: int
    mesh: Name
    session: Session
    host: Text


class Group(_Frame, frozen=True):
    """Tasks of one submit that share everything but their data.

    `model` is what `core.protocol.wish` reads: the name of a model is a preference (see the
    documented task types), with `=` before it a condition. `run_at` Unix seconds, `deadline_s`
    counts from acceptance, `max_attempts` 0 means the orchestrator's default.
    """

    type: Name
    priority: Annotated[int, Meta(ge=1, le=10)]
    payloads: Payloads
    model: Annotated[str, Meta(max_length=MAX_WISH_CHARS)] = ""
    deadline_s: Seconds | None = None
    max_attempts: Annotated[int, Meta(ge=0, le=100)] = 0
    is_fenced: bool = False
    run_at: Annotated[float, Meta(ge=0, le=1e11)] | None = None


class Submit(_Frame, frozen=True, tag=21):
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


class Watch(_Frame, frozen=True, tag=22):
    """Send the outcome of each of these, now or when it comes."""

    ids: Ids


class Unwatch(_Frame, frozen=True, tag=23):
    """These outcomes are not awaited any more."""

    ids: Ids


class Listen(_Frame, frozen=True, tag=24):
    """Start or stop sending this task's partial output."""

    id: TaskId
    is_on: bool


class Query(_Frame, frozen=True, tag=25):
    """A question off the hot path; answered by `Answer` with the same number."""

    request: Count
    what: Name
    args: dict[str, object]


# ---------------------------------------------------------------- broker to both


class Welcome(_Frame, frozen=True, tag=40):
    """The session stands. `dropped_ids` are held attempts that hold no longer: stop them."""

    version: int
    epoch: Count
    broker_id: Name
    heartbeat_s: Seconds
    lease_s: Seconds
    dropped_ids: Ids


class Rehello(_Frame, frozen=True, tag=41):
    """The broker does not know this session: say HELLO again."""

    reason: Text


class Refused(_Frame, frozen=True, tag=42):
    """A message was refused. `seq` is its number, 0 for a HELLO or a message without one.

    `code` is an error code of `d8mesh.errors`; `retry_after_s` > 0: try again then.
    """

    seq: Count
    code: Name
    message: Text
    retry_after_s: Seconds = 0.0


class Beat(_Frame, frozen=True, tag=43):
    """The answer to a heartbeat, and a sign of life to clients."""

    epoch: Count


# ---------------------------------------------------------------- broker to worker


class WorkGroup(_Frame, frozen=True):
    """Attempts of one type: run each `payloads[i]` as task `ids[i]`, show `tokens[i]` after.

    `timeout_s` is the attempt's time from its start; `is_listened`: somebody wants chunks.
    """

    type: Name
    timeout_s: Seconds
    is_listened: bool
    ids: Ids
    tokens: Tokens
    payloads: Payloads


class Work(_Frame, frozen=True, tag=50):
    """Attempts handed out, numbered by `seq` within the session.

    `received` are numbers of `Results` that are on disk, as in `Received`.
    """

    seq: Count
    groups: Annotated[list[WorkGroup], Meta(max_length=MAX_BATCH_TASKS)]
    received: Annotated[list[Count], Meta(max_length=MAX_BATCH_TASKS)] = []


class Received(_Frame, frozen=True, tag=51):
    """The `Results` with this number are on disk; the outbox may forget them."""

    seq: Count


class Stop(_Frame, frozen=True, tag=52):
    """These attempts are no longer wanted: cancelled, past the deadline, or superseded."""

    ids: Ids
    reason: Text


class Listening(_Frame, frozen=True, tag=53):
    """Somebody listens to these tasks (or nobody does any more)."""

    ids: Ids
    is_on: bool


class Recall(_Frame, frozen=True, tag=54):
    """Give back up to this many attempts that have not started: another worker idles."""

    count: Count


class Placement(_Frame, frozen=True):
    """Where an attempt is to run: a service of the worker's and a model there.

    `options` load the model: the same for it in the whole pool. `waiting`: how many more tasks
    wait for it; it had better stay loaded.
    """

    service: Name
    model: Name
    waiting: Count = 0
    options: dict[str, object] = {}


class Placed(_Frame, frozen=True, tag=55):
    """`ids[i]`, which the next `Work` brings, is to run at `placements[i]`."""

    ids: Ids
    placements: Annotated[list[Placement], Meta(max_length=MAX_BATCH_TASKS)]


class Warm(_Frame, frozen=True, tag=56):
    """Load a model: tasks for it will come."""

    placement: Placement


# ---------------------------------------------------------------- broker to client


class Accepted(_Frame, frozen=True, tag=60):
    """The `Submit` with this number is on disk.

    `session` and `first` name its tasks: for a repeated idempotency key those of the first time.
    `warnings` are for people: that nobody offers a type, say.
    """

    seq: Count
    session: Session
    first: Count
    is_repeat: bool = False
    warnings: Annotated[list[Text], Meta(max_length=MAX_WARNINGS)] = []


class Outcomes(_Frame, frozen=True, tag=61):
    """Finished tasks: `states` one byte each, `payloads` their results (an object, msgpack)."""

    ids: Ids
    states: Annotated[bytes, Meta(max_length=MAX_BATCH_TASKS)]
    payloads: Payloads


class Stream(_Frame, frozen=True, tag=62):
    """Partial output of `attempt` of one task; chunk i has the number `first_seq + i`.

    No payloads: a new attempt starts, forget what came before.
    """

    id: TaskId
    attempt: Count
    first_seq: Count
    payloads: Payloads


class Answer(_Frame, frozen=True, tag=63):
    """The answer to an `Query`: a body, or an error `code` with a message in the body."""

    request: Count
    code: Annotated[str, Meta(max_length=128)]
    body: dict[str, object]


_FromWorker: TypeAlias = WorkerHello | Heartbeat | Results | Release | Chunks | Services | Measured
_FromClient: TypeAlias = ClientHello | Submit | Watch | Unwatch | Listen | Query
_ToBoth: TypeAlias = Goodbye | Welcome | Rehello | Refused | Beat
ToBroker: TypeAlias = Goodbye | _FromWorker | _FromClient
ToWorker: TypeAlias = _ToBoth | Work | Received | Stop | Listening | Recall | Placed | Warm
ToClient: TypeAlias = _ToBoth | Accepted | Outcomes | Stream | Answer
Message: TypeAlias = ToBroker | ToWorker | ToClient
