"""What each call of the documented REST takes and answers, for `/openapi.json`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from d8mesh.core.protocol.task import TaskState
from d8mesh.doors.rest import told as t
from d8mesh.doors.rest.schemas import (
    IDEMPOTENCY_KEY,
    Beating,
    NamedReport,
    Register,
    Report,
    SubmitBatch,
    SubmitOne,
    Who,
    WorkerId,
)
from d8mesh.doors.rest.tasks import DEFAULT_PAGE, DEFAULT_WAIT_S, MAX_ID_CHARS, MAX_PAGE, MAX_WAIT_S
from d8mesh.http.described import EVENTS, AboutCall, AboutCalls, HttpReply, json_of

Cursor: TypeAlias = Annotated[str, Meta(max_length=MAX_ID_CHARS)]
Limit: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_PAGE)]
Short: TypeAlias = Annotated[str, Meta(max_length=MAX_ID_CHARS)]
_KEYED: Final = {
    "Idempotency-Key": Annotated[
        str,
        Meta(
            pattern=f"^{IDEMPOTENCY_KEY.pattern}$",
            description="The same key with the same body is one submit.",
        ),
    ]
}


class StatusQuery(Struct):
    """``?full=1``: with its input and what went wrong."""

    full: Literal["", "0", "1", "true", "false"] = ""


class WaitQuery(Struct):
    """How long to wait for its end."""

    timeout_s: Annotated[float, Meta(ge=0, le=MAX_WAIT_S)] = DEFAULT_WAIT_S


class PageQuery(Struct):
    """Which tasks that are not finished."""

    limit: Limit = DEFAULT_PAGE
    cursor: Cursor = ""


class TasksQuery(Struct):
    """Which tasks."""

    limit: Limit = DEFAULT_PAGE
    cursor: Cursor = ""
    state: TaskState | UnsetType = UNSET
    type: Short = ""
    order: Literal["", "oldest", "newest"] = ""
    door: Short = ""


class PollQuery(Struct):
    """How long to wait for a task; a longer wish than 60 s is cut."""

    wait: Annotated[float, Meta(ge=0)] = 0.0


_SUBMITTED: Final = (*json_of(t.SubmittedTold, 201), *json_of(t.SubmittedTold))
_SUBMITTED_BATCH: Final = (*json_of(t.SubmittedBatchTold, 201), *json_of(t.SubmittedBatchTold))

REST_CALLS: Final[AboutCalls] = {
    "GET /health": AboutCall(
        what="How the orchestrator is, and what was refused.",
        answers=(*json_of(t.HealthTold), *json_of(t.HealthTold, 503)),
        problem_kinds=(t.ClosedHealth,),
    ),
    "GET /api/stats": AboutCall(what="Lifetime counts.", answers=json_of(t.StatsTold)),
    "GET /api/workers/stats": AboutCall(what="The same.", answers=json_of(t.StatsTold)),
    "POST /api/tasks/submit": AboutCall(
        what="Submit a task.", body=SubmitOne, takes_nulls=True, headers=_KEYED, answers=_SUBMITTED
    ),
    "POST /api/tasks/submit_batch": AboutCall(
        what="Submit tasks, all or none.",
        body=SubmitBatch,
        takes_nulls=True,
        headers=_KEYED,
        answers=_SUBMITTED_BATCH,
    ),
    "GET /api/tasks/queue": AboutCall(
        what="The tasks that are not finished.", query=PageQuery, answers=json_of(t.QueueTold)
    ),
    "GET /api/tasks": AboutCall(what="Tasks.", query=TasksQuery, answers=json_of(t.PageTold)),
    "GET /api/tasks/status/<task_id>": AboutCall(
        what="A task.", query=StatusQuery, answers=json_of(t.StatusTold)
    ),
    "GET /api/tasks/<task_id>/wait": AboutCall(
        what="Wait for the end of a task.", query=WaitQuery, answers=json_of(t.StatusTold)
    ),
    "GET /api/tasks/<task_id>/stream": AboutCall(
        what="The partial output of a task, as it comes.", answers=(HttpReply(200, None, EVENTS),)
    ),
    "GET /api/tasks/<task_id>/explain": AboutCall(
        what="Why a task waits, or why it ran where it ran.", answers=json_of(t.ExplainedTold)
    ),
    "POST /api/tasks/<task_id>/cancel": AboutCall(what="Cancel it.", answers=json_of(t.StateTold)),
    "POST /api/tasks/<task_id>/replay": AboutCall(
        what="Submit a failed or cancelled task again.", answers=json_of(t.ReplayedTold, 201)
    ),
    "POST /api/tasks/<task_id>/result": AboutCall(
        what="A polling worker reports.", body=Report, answers=json_of(t.DoneTold)
    ),
    "POST /api/workers/results": AboutCall(
        what="The same, with the task in the body.", body=NamedReport, answers=json_of(t.DoneTold)
    ),
    "POST /api/workers/register": AboutCall(
        what="A polling worker comes.",
        body=Register,
        takes_nulls=True,
        answers=json_of(t.RegisteredTold),
    ),
    "POST /api/workers/unregister": AboutCall(
        what="It leaves.", body=WorkerId, answers=json_of(t.DoneTold)
    ),
    "GET /api/models": AboutCall(
        what="All language models and the services that have them.", answers=json_of(t.ModelsTold)
    ),
    "GET /api/workers/list": AboutCall(what="All workers.", answers=json_of(t.WorkersTold)),
    "POST /api/workers/<worker_id>/heartbeat": AboutCall(
        what="It lives.",
        body=Beating,
        may_be_empty=True,
        takes_nulls=True,
        answers=json_of(t.BeatenTold),
    ),
    "POST /api/workers/<worker_id>/unregister": AboutCall(
        what="It leaves.", body=dict[str, Any], may_be_empty=True, answers=json_of(t.DoneTold)
    ),
    "GET /api/workers/<worker_id>/tasks": AboutCall(
        what="A polling worker asks for a task.", query=PollQuery, answers=json_of(t.PolledTold)
    ),
}


_CHANGED: Final = json_of(t.MemberTold)
#: Of `doors.rest.members`, which is a door of its own.
JOIN_CALLS: Final[AboutCalls] = {
    "GET /api/join": AboutCall(what="The keys that are known.", answers=json_of(t.MembersTold)),
    "POST /api/join/approve": AboutCall(what="Let one in.", body=Who, answers=_CHANGED),
    "POST /api/join/revoke": AboutCall(what="Show one out.", body=Who, answers=_CHANGED),
    "POST /api/join/forget": AboutCall(what="Forget one.", body=Who, answers=_CHANGED),
}
