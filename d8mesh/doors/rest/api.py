"""The door of the documented REST: the table of its calls.

It keeps no state of tasks: every call is one question to the broker, which decides; see
``docs/REST.md`` for the calls and ``core.broker.client_requests`` for the questions.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from d8mesh.core.protocol.access_tokens import ALL_SCOPES, TokenScope
from d8mesh.doors.rest import schemas
from d8mesh.doors.rest.described import REST_CALLS
from d8mesh.doors.rest.schemas import NamedReport, Report, WorkerId, body_of, report_of
from d8mesh.doors.rest.streams import StreamCalls
from d8mesh.doors.rest.tasks import BROKER_ASK_S, TaskCalls
from d8mesh.doors.rest.workers import WorkerCalls
from d8mesh.doors.waiting import Places, require_broker
from d8mesh.errors import D8Error, NodeClosedError
from d8mesh.http.answers import Response, answer
from d8mesh.http.guard import Rejections
from d8mesh.http.routes import MAX_BODY_BYTES, Door, HttpRoute, Request, with_descriptions
from d8mesh.nodes.client.aio.node import AsyncNode

_SUBMIT: Final = frozenset({TokenScope.SUBMIT})
_WORK: Final = frozenset({TokenScope.WORK})
#: How long `/health` waits for the broker before it says so.
HEALTH_S: Final = 1.0
#: What `/health` tells whoever has no key: what mDNS tells everybody, and no more.
_PUBLIC: Final = ("broker_id", "broker_port", "mesh", "server_key", "proof", "tls")
#: What `/health` tells of the broker even while it does not answer.
_LASTING: Final = ("broker_id", "broker_port", "server_key", "proof", "mesh", "version")


def rest_door(mesh: AsyncNode, waits: Places, rejections: Rejections) -> Door:
    """Return the door; `/health` tells of the rejections."""
    tasks, workers = TaskCalls(mesh, waits), WorkerCalls(mesh, waits)
    streams, health = StreamCalls(mesh, tasks.status_of), HealthCall(mesh, rejections)
    stats = partial(_answer_of, mesh, "stats")
    get, post = HttpRoute, partial(HttpRoute, method="POST")
    much = partial(post, max_body_bytes=MAX_BODY_BYTES)  # data and results travel here
    get_work, post_work = partial(get, scopes=_WORK), partial(post, scopes=_WORK)
    report = partial(much, on_untaken=workers.refuse_report, scopes=_WORK)
    routes = (
        get(
            "/health",
            health.health,
            is_light=True,
            scopes=ALL_SCOPES,
            known_to_all=health.known_to_all,
        ),
        get("/api/stats", stats),
        much("/api/tasks/submit", tasks.submit, schemas.submit_of),
        much("/api/tasks/submit_batch", tasks.submit_batch, schemas.batch_of),
        get("/api/tasks/queue", tasks.queue),
        get("/api/tasks", tasks.listed),
        get("/api/tasks/status/<task_id>", tasks.status),
        get("/api/tasks/<task_id>/wait", tasks.wait),
        get("/api/tasks/<task_id>/stream", streams.stream),
        get("/api/tasks/<task_id>/explain", tasks.explain),
        post("/api/tasks/<task_id>/cancel", tasks.cancel),
        post("/api/tasks/<task_id>/replay", tasks.replay),
        report("/api/tasks/<task_id>/result", workers.result, partial(report_of, Report)),
        report("/api/workers/results", workers.result, partial(report_of, NamedReport)),
        post_work("/api/workers/register", workers.register, schemas.registration_of),
        post_work("/api/workers/unregister", workers.unregister, partial(body_of, WorkerId)),
        get(
            "/api/models",
            partial(_answer_of, mesh, "models"),
            scopes=_SUBMIT | {TokenScope.CHAT},
        ),
        get("/api/workers/list", partial(_answer_of, mesh, "workers")),
        get("/api/workers/stats", stats),
        post_work("/api/workers/<worker_id>/heartbeat", workers.heartbeat, schemas.beating_of),
        post_work("/api/workers/<worker_id>/unregister", workers.unregister, schemas.object_of),
        get_work("/api/workers/<worker_id>/tasks", workers.poll, is_for_programs=True),
    )
    return Door(
        routes=with_descriptions(routes, REST_CALLS),
        before=lambda _: require_broker(mesh, waits),
        scopes=_SUBMIT,
    )


async def _answer_of(mesh: AsyncNode, what: str, request: Request) -> Response:
    """Answer with what the broker tells of this."""
    return answer(await mesh.ask(what, {}, BROKER_ASK_S))


class HealthCall:
    """Answers ``GET /health``."""

    def __init__(self, mesh: AsyncNode, rejections: Rejections) -> None:
        self._mesh, self._rejections = mesh, rejections
        #: what was last heard of the broker and stays true while it is away
        self._known: dict[str, Any] = {}

    async def known_to_all(self) -> dict[str, Any]:
        """Return by what a node finds the broker; inside CURVE it then shows who it is."""
        if not self._known and self._mesh.is_connected:
            with contextlib.suppress(D8Error):
                self._known = self._lasting(await self._mesh.ask("health", {}, HEALTH_S))
        return {name: self._known[name] for name in _PUBLIC if name in self._known}

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
                self._known = self._lasting(body)
            except NodeClosedError:
                raise
            except D8Error as error:
                reason = str(error)
        rejected = {"broker": body.pop("rejected", {}), "rest": self._rejections.counts()}
        body = self._known | body | told | {"rejected": rejected}
        if reason is None:
            return answer({"status": "healthy"} | body)
        return answer(body | {"status": "unhealthy", "reason": reason, "is_accepting": False}, 503)

    @staticmethod
    def _lasting(told: dict[str, Any]) -> dict[str, Any]:
        return {key: told[key] for key in _LASTING if key in told}
