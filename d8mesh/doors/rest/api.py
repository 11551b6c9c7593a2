"""The orchestrator's REST: the table of calls, and how a request becomes an answer.

A shim: it keeps no state of its own. Every call is one question to the broker, which
decides; see ``docs/REST.md`` for the calls and ``core.broker.client_requests`` for the questions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import Map, RequestRedirect, Rule
from werkzeug.wrappers import Request, Response

from d8mesh.config import Config
from d8mesh.doors.rest.mesh import (
    MAX_STREAMS,
    MAX_WAITS,
    Mesh,
    Places,
    require_alive,
    require_broker,
)
from d8mesh.doors.rest.streams import StreamCalls
from d8mesh.doors.rest.tasks import TaskCalls
from d8mesh.doors.rest.workers import WorkerCalls
from d8mesh.doors.tunnel import Exchange
from d8mesh.edge.logs import event
from d8mesh.errors import D8Error, NodeClosedError
from d8mesh.http.answers import Refusal, answer, problem
from d8mesh.http.guard import Guard, Rejections

#: How long `/health` waits for the broker before it says so.
HEALTH_S: Final = 1.0
#: Longest path and query that is looked at.
MAX_URL_CHARS: Final = 4096
#: What `/health` tells of the broker even while it does not answer.
_LASTING: Final = ("broker_id", "broker_port", "mesh", "version")
#: Bodies larger than this are read a few at a time: each costs several times its size.
LARGE_BYTES: Final = 1_048_576
MAX_LARGE: Final = 4
#: How long one may wait for its turn.
LARGE_S: Final = 20.0
#: (method, path, name of the call); ``docs/REST.md`` lists the same.
ROUTES: Final = (
    ("GET", "/health", "health"),
    ("POST", "/api/workers/register", "register"),
    ("POST", "/api/workers/unregister", "unregister_by_body"),
    ("POST", "/api/workers/results", "results"),
    ("GET", "/api/workers/list", "workers"),
    ("GET", "/api/workers/stats", "stats"),
    ("POST", "/api/workers/<worker_id>/heartbeat", "heartbeat"),
    ("POST", "/api/workers/<worker_id>/unregister", "unregister"),
    ("GET", "/api/workers/<worker_id>/tasks", "poll"),
    ("POST", "/api/tasks/submit", "submit"),
    ("POST", "/api/tasks/submit_batch", "submit_batch"),
    ("GET", "/api/tasks/queue", "queue"),
    ("GET", "/api/tasks", "tasks"),
    ("GET", "/api/tasks/status/<task_id>", "status"),
    ("GET", "/api/tasks/<task_id>/wait", "wait"),
    ("GET", "/api/tasks/<task_id>/stream", "stream"),
    ("POST", "/api/tasks/<task_id>/result", "result"),
    ("POST", "/api/tasks/<task_id>/cancel", "cancel"),
    ("POST", "/api/tasks/<task_id>/replay", "replay"),
    ("GET", "/api/stats", "stats"),
    ("POST", "/api/mesh/exchange", "exchange"),
)

#: What keeps a proxy from holding back a stream or a long poll, and from answering for us.
_PASSED_ON_AT_ONCE: Final = (("Cache-Control", "no-store"), ("X-Accel-Buffering", "no"))

Call = Callable[..., Response]
_log: Final = logging.getLogger("d8mesh.web")


class Api:
    """The WSGI application.

    Args:
        config: the settings.
        mesh: a client of the broker.
        exchange: what carries the frames of ``/api/mesh/exchange``; None: nothing does.
        waits: the places of waiting requests.

    Thread: called from any number.
    """

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        *,
        exchange: Exchange | None = None,
        waits: Places | None = None,
    ) -> None:
        waits = waits or Places(MAX_WAITS)
        self._mesh, self._waits = mesh, waits
        self._guard = Guard(config)
        self.rejections = Rejections()
        #: what was last heard of the broker and stays true while it is away
        self._known: dict[str, Any] = {}
        #: the client of the mesh has ended: nothing works here any more
        self.is_dead = False
        self.on_dead: Callable[[], None] = lambda: None
        self._large = threading.BoundedSemaphore(MAX_LARGE)
        tasks = TaskCalls(mesh, waits)
        workers = WorkerCalls(mesh, waits)
        streams = StreamCalls(mesh, Places(MAX_STREAMS), tasks.status_of)
        self._calls: dict[str, Call] = {
            "health": self.health,
            "register": workers.register,
            "unregister": workers.unregister,
            "unregister_by_body": workers.unregister_by_body,
            "heartbeat": workers.heartbeat,
            "poll": workers.poll,
            "results": workers.results,
            "result": workers.result,
            "workers": workers.listed,
            "stats": workers.stats,
            "submit": tasks.submit,
            "submit_batch": tasks.submit_batch,
            "status": tasks.status,
            "wait": tasks.wait,
            "cancel": tasks.cancel,
            "replay": tasks.replay,
            "queue": tasks.queue,
            "tasks": tasks.listed,
            "stream": streams.stream,
            "exchange": _no_exchange if exchange is None else exchange.exchange,
        }
        self._map = Map(
            [Rule(path, methods=[method], endpoint=name) for method, path, name in ROUTES],
            strict_slashes=False,
            merge_slashes=False,
        )

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Serve one request (WSGI)."""
        request = Request(environ)
        response = self._answer(request)
        for name, value in _PASSED_ON_AT_ONCE:
            response.headers.setdefault(name, value)
        return response(environ, start_response)

    def health(self, request: Request) -> Response:
        """``GET /health``"""
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told: dict[str, Any] = {"service": "d8-orchestrator", "timestamp": at}
        reason: object = "the broker does not answer"
        body: dict[str, Any] = {"workers_online": 0, "tasks_pending": 0, "tasks_in_progress": 0}
        if self._mesh.is_connected:
            try:
                body = self._mesh.ask("health", {}, timeout=HEALTH_S)
                reason = body.pop("reason", None)
                self._known = {key: body[key] for key in _LASTING if key in body}
            except NodeClosedError:
                raise
            except D8Error as error:
                reason = str(error)
        else:
            require_alive(self._mesh)
        rejected = {"broker": body.pop("rejected", {}), "rest": self.rejections.counts()}
        body = self._known | body | told | {"rejected": rejected}
        if reason is None:
            return answer({"status": "healthy"} | body)
        return answer(body | {"status": "unhealthy", "reason": reason, "is_accepting": False}, 503)

    def refused_early(self, code: str, text: str, peer: str) -> None:
        """Count and log what the server refused before it was a request."""
        self.rejections.add(code)
        event(_log, logging.WARNING, "http.refused", peer=peer, code=code, why=text)

    # ------------------------------------------------------------------ one request

    def _answer(self, request: Request) -> Response:
        try:
            return self._dispatch(request)
        except (D8Error, Refusal) as error:
            response = problem(error)
            if isinstance(error, NodeClosedError):
                self.is_dead = True
                self.on_dead()
            self._refused(request, error.code, str(error), response.status_code)
            return response
        except Exception as error:  # no traceback to a caller, whatever it is
            _log.exception("request failed")
            self._refused(request, "d8.error", type(error).__name__, 500)
            return problem(D8Error("something went wrong here; the log says what"))

    def _dispatch(self, request: Request) -> Response:
        self._guard.check(request)
        name, values = self._match(request)
        if name != "health":
            require_broker(self._mesh, self._waits)
        if (request.content_length or 0) <= LARGE_BYTES:
            return self._calls[name](request, **values)
        if not self._large.acquire(timeout=LARGE_S):
            raise Refusal("access.flood", "too many large bodies at the same time: come again")
        try:
            return self._calls[name](request, **values)
        finally:
            self._large.release()

    def _match(self, request: Request) -> tuple[str, dict[str, Any]]:
        if len(request.environ.get("PATH_INFO", "")) > MAX_URL_CHARS:
            raise Refusal("http.url_too_long", f"at most {MAX_URL_CHARS} characters")
        if len(request.environ.get("QUERY_STRING", "")) > MAX_URL_CHARS:
            raise Refusal("http.url_too_long", f"at most {MAX_URL_CHARS} characters")
        try:
            name, values = self._map.bind("d8").match(request.path, method=request.method)
        except MethodNotAllowed as error:
            allowed = ", ".join(sorted(error.valid_methods or ()))
            raise Refusal(
                "http.method",
                f"{request.method[:20]} is not for this path: expected {allowed}",
                headers={"Allow": allowed},
            ) from error
        except (NotFound, RequestRedirect, HTTPException) as error:
            path = quote(request.path[:100])
            raise Refusal("http.not_found", f"there is nothing at {path}") from error
        return str(name), dict(values)

    def _refused(self, request: Request, code: str, text: str, status: int) -> None:
        """Count a refusal and log one line."""
        self.rejections.add(code)
        event(
            _log,
            logging.WARNING if code.startswith(("http.", "access.")) else logging.INFO,
            "http.refused",
            peer=request.remote_addr,
            method=request.method,
            path=request.path,
            status=status,
            code=code,
            why=text,
        )


def _no_exchange(request: Request) -> Response:
    raise Refusal("http.not_found", "no frames are exchanged here")
