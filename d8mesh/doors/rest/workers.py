"""The calls of polling workers."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any, Final

from d8mesh.doors.query import seconds
from d8mesh.doors.rest.dialect import lacks_output, named_in, reported, task_body
from d8mesh.doors.rest.schemas import Beating, NamedReport, Register, Report
from d8mesh.doors.rest.tasks import BROKER_ASK_S, MAX_ID_CHARS
from d8mesh.doors.waiting import Places
from d8mesh.errors import D8Error, UnknownTaskError, UnknownWorkerError
from d8mesh.http.answers import Refusal, Response, answer
from d8mesh.http.off_loop import off_loop
from d8mesh.http.routes import Request
from d8mesh.nodes.client.aio.node import AsyncNode

#: The longest a poll may wait; a longer wish is cut.
MAX_POLL_S: Final = 60.0


class WorkerCalls:
    """Answers ``/api/workers/…`` and the reports of results."""

    def __init__(self, mesh: AsyncNode, waits: Places) -> None:
        self._mesh, self._waits = mesh, waits
        #: the question of each worker's newest poll; the broker ends an older one by itself
        self._polls: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def register(self, request: Request) -> Response:
        """``POST /api/workers/register``"""
        worker: Register = request.value
        args = {
            "worker_type": worker.worker_type,
            "capabilities": worker.capabilities,
            "status": worker.status or "online",
        }
        await self._ask("poll.register", worker.worker_id, args)
        told = {"status": "registered", "success": True, "worker_id": worker.worker_id}
        return answer({**told, "message": f"Worker {worker.worker_id} registered"})

    async def heartbeat(self, request: Request, worker_id: str) -> Response:
        """``POST /api/workers/{id}/heartbeat``"""
        beating: Beating = request.value or Beating()
        named = {} if beating.task_ids is None else {"task_ids": beating.task_ids}
        await self._ask("poll.heartbeat", worker_id, named)
        return answer({"status": "ok"})

    async def unregister(self, request: Request, worker_id: str | None = None) -> Response:
        """``POST /api/workers/{id}/unregister`` and ``POST /api/workers/unregister``"""
        worker_id = request.value.worker_id if worker_id is None else worker_id
        await self._ask("poll.unregister", worker_id)
        return answer({"status": "unregistered", "success": True})

    async def poll(self, request: Request, worker_id: str) -> Response:
        """``GET /api/workers/{id}/tasks``"""
        wait_s = seconds(request.args, "wait", default=0.0, most=MAX_POLL_S, is_cut=True)
        if request.method == "HEAD":  # a task handed out to nobody would be lost for a while
            return await self.heartbeat(request, worker_id)
        if not wait_s:
            return await self._next(worker_id, 0.0)
        with self._waits.one() as may_wait:
            return await self._next(worker_id, wait_s if may_wait else 0.0)

    async def result(self, request: Request, task_id: str | None = None) -> Response:
        """``POST /api/tasks/{id}/result`` and ``POST /api/workers/results``"""
        report: Report | NamedReport = request.value
        task_id = request.value.task_id if task_id is None else task_id
        if len(task_id) > MAX_ID_CHARS:
            raise UnknownTaskError
        task_type, worker_id = "", report.worker_id
        if lacks_output(report.result):
            task_type = (await self._mesh.ask("status", {"id": task_id}, BROKER_ASK_S))["type"]
        pack = partial(reported, worker_id=worker_id, task_type=task_type)
        is_success, payload = await off_loop(len(request.body), pack, report.result)
        args = {"task_id": task_id, "is_success": is_success, "result": payload}
        await self._ask("poll.report", worker_id, args)
        return answer({"status": "received", "success": True})

    async def refuse_report(
        self, request: Request, error: D8Error | Refusal, task_id: str = ""
    ) -> None:
        """End the attempt whose report cannot be taken: its worker knows no other to send.

        Left alone the task would be handed to the same worker again, and end in the same way.
        """
        named = await off_loop(len(request.body), named_in, request.body)
        task_id = task_id or named.get("task_id", "")
        args = {"task_id": task_id, "error": str(error), "worker_id": named.get("worker_id", "")}
        if 1 <= len(task_id) <= MAX_ID_CHARS:
            with contextlib.suppress(D8Error):
                await self._mesh.ask("poll.refused", args, BROKER_ASK_S)

    async def _ask(
        self, what: str, worker_id: str, args: dict[str, Any] | None = None, wait_s: float = 0.0
    ) -> dict[str, Any]:
        if not 1 <= len(worker_id) <= MAX_ID_CHARS:  # nobody can have registered it
            raise UnknownWorkerError
        return await self._mesh.ask(
            what, {"worker_id": worker_id, **(args or {})}, BROKER_ASK_S + wait_s
        )

    async def _next(self, worker_id: str, wait_s: float) -> Response:
        """Answer with the worker's next task."""
        question = self._ask("poll.next", worker_id, {"wait_s": wait_s}, wait_s)
        asking = self._polls[worker_id] = asyncio.ensure_future(question)
        try:
            task = (await asyncio.shield(asking))["task"]
            return await off_loop(0 if task is None else len(task["data"]), _handed, task)
        except asyncio.CancelledError:
            leaving = asyncio.create_task(self._leave(worker_id, asking))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            raise
        finally:
            if self._polls.get(worker_id) is asking:
                del self._polls[worker_id]

    async def _leave(self, worker_id: str, asking: asyncio.Task[dict[str, Any]]) -> None:
        """Let the broker know that who polled is gone; what it was handed just now goes back."""
        with contextlib.suppress(D8Error):
            if worker_id not in self._polls:  # else a newer poll has ended this one
                await self._ask("poll.leave", worker_id)
        with contextlib.suppress(D8Error):
            task = (await asking)["task"]
            if task is not None:
                await self._ask("poll.leave", worker_id, {"task_id": task["task_id"]})


def _handed(task: dict[str, Any] | None) -> Response:
    return answer({"task": None if task is None else task_body(task)})
