"""The calls that submit tasks, look at them, and change them."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, Final

from d8mesh.core.protocol.access_tokens import ADMIN_ONLY, TokenScope
from d8mesh.core.protocol.messages import MAX_WARNINGS
from d8mesh.core.protocol.wish import SERVICE_TYPES
from d8mesh.doors.query import flag, integer, seconds
from d8mesh.doors.rest.dialect import status_body
from d8mesh.doors.rest.schemas import Wanted, idempotency_key
from d8mesh.doors.waiting import Places
from d8mesh.errors import InvalidTaskError, UnknownTaskError
from d8mesh.http.answers import Response, answer
from d8mesh.http.off_loop import off_loop
from d8mesh.http.routes import Request
from d8mesh.nodes.client.aio.node import AsyncNode

#: How long a question may take: the broker answers in milliseconds.
BROKER_ASK_S: Final = 10.0
#: How long a submit may take: its commit waits for the disk.
SUBMIT_S: Final = 30.0
MAX_WAIT_S: Final = 60.0
DEFAULT_WAIT_S: Final = 30.0
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
#: Longest id and cursor that is passed on; ours are shorter.
MAX_ID_CHARS: Final = 128


class TaskCalls:
    """Answers ``/api/tasks…`` but for results and streams."""

    def __init__(self, mesh: AsyncNode, waits: Places) -> None:
        self._mesh, self._waits = mesh, waits

    async def submit(self, request: Request) -> Response:
        """``POST /api/tasks/submit``"""

        def told(ids: list[str]) -> dict[str, Any]:
            message = f"Task {ids[0]} submitted"
            return {"task_id": ids[0], "status": "submitted", "message": message}

        return await self._submit(request, told)

    async def submit_batch(self, request: Request) -> Response:
        """``POST /api/tasks/submit_batch``"""
        return await self._submit(request, lambda ids: {"task_ids": ids, "status": "submitted"})

    async def status(self, request: Request, task_id: str) -> Response:
        """``GET /api/tasks/status/{id}``"""
        is_full = flag(request.args, "full")
        body = await self._ask("status", task_id, **({"full": True} if is_full else {}))
        is_near = is_full and request.access.is_near
        return await _told(body, lambda: status_body(body, has_tracebacks=is_near))

    async def wait(self, request: Request, task_id: str) -> Response:
        """``GET /api/tasks/{id}/wait``"""
        wait_s = seconds(request.args, "timeout_s", default=DEFAULT_WAIT_S, most=MAX_WAIT_S)
        with self._waits.one() as may_wait:
            if may_wait and wait_s:
                await self._mesh.outcome_of(_id(task_id), wait_s)
        body = await self._ask("status", task_id)
        return await _told(body, lambda: status_body(body))

    async def explain(self, request: Request, task_id: str) -> Response:
        """``GET /api/tasks/{id}/explain``"""
        return answer(await self._ask("explain", task_id))

    async def cancel(self, request: Request, task_id: str) -> Response:
        """``POST /api/tasks/{id}/cancel``"""
        return answer(await self._ask("cancel", task_id))

    async def replay(self, request: Request, task_id: str) -> Response:
        """``POST /api/tasks/{id}/replay``"""
        if TokenScope.ADMIN not in request.access.scopes:  # else it may change models, too
            _require_for(request, {(await self._ask("status", task_id))["type"]})
        session, n = self._mesh.next_id()
        args = {"id": _id(task_id), "session": session, "n": n}
        return answer(await self._mesh.ask("replay", args, SUBMIT_S), 201)

    async def queue(self, request: Request) -> Response:
        """``GET /api/tasks/queue``"""
        return answer(await self._mesh.ask("queue", _page(request), BROKER_ASK_S))

    async def listed(self, request: Request) -> Response:
        """``GET /api/tasks``"""
        args = _page(request)
        args |= {name: request.args.get(name, "") for name in ("state", "type", "order", "door")}
        for name in ("type", "door"):
            if len(str(args[name])) > MAX_ID_CHARS:
                raise InvalidTaskError(f"{name}: expected at most {MAX_ID_CHARS} characters")
        body = await self._mesh.ask("tasks", args, BROKER_ASK_S)
        tasks: list[dict[str, Any]] = body["tasks"]
        return await _told(body, lambda: body | {"tasks": [status_body(each) for each in tasks]})

    async def status_of(self, task_id: str) -> dict[str, Any]:
        """Return the documented status body."""
        return status_body(await self._ask("status", task_id))

    async def _ask(self, what: str, task_id: str, **more: object) -> dict[str, Any]:
        return await self._mesh.ask(what, {"id": _id(task_id), **more}, BROKER_ASK_S)

    async def _submit(
        self, request: Request, told: Callable[[list[str]], dict[str, Any]]
    ) -> Response:
        """Submit, and answer with the ids, and with each warning once, if there are any."""
        wanted: Wanted = request.value
        _require_for(request, {group.type for group in wanted.groups})
        sent = await self._mesh.submit_groups(
            wanted.groups,
            key=idempotency_key(request.fields.get("idempotency-key")),
            is_listened=wanted.is_listened,
            timeout_s=SUBMIT_S,
        )
        warnings = list(dict.fromkeys([*wanted.warnings, *sent.warnings]))[:MAX_WARNINGS]
        body = told(sent.ids) | ({"warnings": warnings} if warnings else {})
        return answer(body, 200 if sent.is_repeat else 201)


def _require_for(request: Request, types: Set[str]) -> None:
    """Refuse tasks that change models to who may not change any, as Ollama's door does."""
    if not SERVICE_TYPES.isdisjoint(types):
        request.access.require(ADMIN_ONLY, asks_always=False)


async def _told(body: dict[str, Any], make: Callable[[], dict[str, Any]]) -> Response:
    """Answer with what `make` returns: at once, or beside the loop where results are large."""
    bodies = body.get("tasks") or (body,)
    size = sum(len(each.get(name) or b"") for each in bodies for name in ("result", "data"))
    return await off_loop(size, lambda make: answer(make()), make)


def _id(task_id: str) -> str:
    if len(task_id) > MAX_ID_CHARS:
        raise UnknownTaskError
    return task_id


def _page(request: Request) -> dict[str, object]:
    cursor = request.args.get("cursor", "")
    if len(cursor) > MAX_ID_CHARS:
        raise InvalidTaskError("cursor: expected what next_cursor said")
    limit = integer(request.args, "limit", default=DEFAULT_PAGE, most=MAX_PAGE)
    return {"limit": limit, "cursor": cursor}
