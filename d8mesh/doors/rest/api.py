"""The door of the documented REST: the table of its calls.

It keeps no state of tasks: every call is one question to the broker, which decides; see
``docs/REST.md`` for the calls and ``core.broker.client_requests`` for the questions.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from d8mesh.doors.rest import schemas
from d8mesh.doors.rest.streams import StreamCalls
from d8mesh.doors.rest.tasks import TaskCalls
from d8mesh.doors.rest.workers import WorkerCalls
from d8mesh.doors.waiting import Places, require_broker
from d8mesh.errors import D8Error, NodeClosedError
from d8mesh.http.answers import Response, answer
from d8mesh.http.guard import Rejections
from d8mesh.http.request import Request
from d8mesh.http.routes import MAX_BODY_BYTES, Door, Route
from d8mesh.nodes.client.aio.node import AsyncNode

#: How long `/health` waits for the broker before it says so.
HEALTH_S: Final = 1.0
#: What `/health` tells of the broker even while it does not answer.
_LASTING: Final = ("broker_id", "broker_port", "mesh", "version")

_get: Final = partial(Route, method="GET")
_post: Final = partial(Route, method="POST")
#: Data and results travel here.
_post_much: Final = partial(_post, max_body_bytes=MAX_BODY_BYTES)


def rest_door(mesh: AsyncNode, waits: Places, rejections: Rejections) -> Door:
    """Return the door.

    Args:
        mesh: a client of the broker.
        waits: the places of waiting requests.
        rejections: what `/health` tells of what was refused here.
    """
    tasks, workers = TaskCalls(mesh, waits), WorkerCalls(mesh, waits)
    streams, health = StreamCalls(mesh, tasks.status_of), HealthCall(mesh, rejections)
    report = partial(_post_much, on_untaken=workers.refuse_report)
    routes = (
        _get(rule="/health", call=health.health, is_light=True),
        _get(rule="/api/stats", call=workers.stats),
        _post_much(rule="/api/tasks/submit", call=tasks.submit, schema=schemas.submit_of),
        _post_much(
            rule="/api/tasks/submit_batch", call=tasks.submit_batch, schema=schemas.batch_of
        ),
        _get(rule="/api/tasks/queue", call=tasks.queue),
        _get(rule="/api/tasks", call=tasks.listed),
        _get(rule="/api/tasks/status/<task_id>", call=tasks.status),
        _get(rule="/api/tasks/<task_id>/wait", call=tasks.wait),
        _get(rule="/api/tasks/<task_id>/stream", call=streams.stream),
        _post(rule="/api/tasks/<task_id>/cancel", call=tasks.cancel),
        _post(rule="/api/tasks/<task_id>/replay", call=tasks.replay),
        report(rule="/api/tasks/<task_id>/result", call=workers.result, schema=schemas.report_of),
        report(rule="/api/workers/results", call=workers.results, schema=schemas.named_report_of),
        _post(rule="/api/workers/register", call=workers.register, schema=schemas.registration_of),
        _post(
            rule="/api/workers/unregister",
            call=workers.unregister_by_body,
            schema=schemas.worker_id_of,
        ),
        _get(rule="/api/workers/list", call=workers.listed),
        _get(rule="/api/workers/stats", call=workers.stats),
        _post(
            rule="/api/workers/<worker_id>/heartbeat",
            call=workers.heartbeat,
            schema=schemas.beating_of,
        ),
        _post(
            rule="/api/workers/<worker_id>/unregister",
            call=workers.unregister,
            schema=schemas.optional_object_of,
        ),
        _get(rule="/api/workers/<worker_id>/tasks", call=workers.poll),
    )
    return Door(name="rest", routes=routes, before=lambda _: require_broker(mesh, waits))


class HealthCall:
    """Answers ``GET /health``.

    Args:
        mesh: a client of the broker.
        rejections: what was refused here.
    """

    def __init__(self, mesh: AsyncNode, rejections: Rejections) -> None:
        self._mesh, self._rejections = mesh, rejections
        #: what was last heard of the broker and stays true while it is away
        self._known: dict[str, Any] = {}

    async def health(self, request: Request) -> Response:
        """``GET /health``"""
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told: dict[str, Any] = {"service": "d8-orchestrator", "timestamp": at}
        reason: object = "the broker does not answer"
        body: dict[str, Any] = {"workers_online": 0, "tasks_pending": 0, "tasks_in_progress": 0}
        self._mesh.check_alive()
        if self._mesh.is_connected:
            try:
                body = await self._mesh.ask("health", {}, HEALTH_S)
                reason = body.pop("reason", None)
                self._known = {key: body[key] for key in _LASTING if key in body}
            except NodeClosedError:
                raise
            except D8Error as error:
                reason = str(error)
        rejected = {"broker": body.pop("rejected", {}), "rest": self._rejections.counts()}
        body = self._known | body | told | {"rejected": rejected}
        if reason is None:
            return answer({"status": "healthy"} | body)
        return answer(body | {"status": "unhealthy", "reason": reason, "is_accepting": False}, 503)
