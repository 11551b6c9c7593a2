"""Tasks that are followed by calls, over a real broker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from d8mesh.core.client.submission import TaskOutcome
from d8mesh.core.protocol.messages import CANCELLED_STATE, COMPLETED_STATE, Group, Stream
from d8mesh.errors import D8Error, KeyConflictError, NodeClosedError
from d8mesh.handlers import TaskContext
from d8mesh.nodes.client.aio import followed
from d8mesh.nodes.client.aio.followed import FollowedTask
from d8mesh.nodes.client.aio.node import AsyncNode
from tests.nodes.mesh import PATIENCE_S, Mesh, mesh_in


class Events:
    """Follows a task and remembers what it is told."""

    task: FollowedTask

    def __init__(self) -> None:
        self.told: list[str] = []
        self.outcome: TaskOutcome | None = None
        self.error: D8Error | None = None
        self.is_over = asyncio.Event()

    def accepted(self) -> None:
        self.told.append("accepted")

    def heard(self, stream: Stream) -> None:
        self.told += [msgspec.msgpack.decode(each) for each in stream.payloads]

    def ended(self, outcome: TaskOutcome) -> None:
        self.outcome = outcome
        self.is_over.set()

    def refused(self, error: D8Error) -> None:
        self.error = error
        self.is_over.set()

    async def over(self) -> TaskOutcome:
        async with asyncio.timeout(PATIENCE_S):
            await self.is_over.wait()
        if self.error is not None:
            raise self.error
        assert self.outcome is not None
        return self.outcome


def say(data: Mapping[str, Any], context: TaskContext) -> str:
    context.emit("one")
    context.emit("two")
    return "end"


Program = Callable[[AsyncNode], Coroutine[Any, Any, None]]


def in_mesh(folder: Path, program: Program, **handlers: Callable[..., object]) -> None:
    """Run a program with a node, beside a worker with these handlers."""
    with mesh_in(folder) as mesh:
        port = mesh.broker()
        worker = mesh.worker(port)
        for name, handler in handlers.items():
            worker.register(name, handler)
        if handlers:
            mesh.run(worker)
        asyncio.run(_with_node(mesh, port, program))


async def _with_node(mesh: Mesh, port: int, program: Program) -> None:
    node = AsyncNode(mesh.config(), endpoint=mesh.endpoint(port), url=None)
    try:
        await program(node)
    finally:
        await node.close(1.0)


def tasks(count: int, kind: str = "say") -> list[FollowedTask]:
    return [FollowedTask(Group(kind, 5, [b"\x80"]), Events()) for _ in range(count)]


def events(task: FollowedTask) -> Events:
    assert isinstance(task.follower, Events)
    return task.follower


def test_what_is_submitted_in_one_turn_travels_together_and_each_is_told_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed, "TOGETHER", 3)

    async def program(node: AsyncNode) -> None:
        assert await node.wait_connected(PATIENCE_S)  # else what came early is heard again
        asked = tasks(4)
        for each in asked:
            node.followed.submit([each], is_heard=True)
        outcomes = [await events(each).over() for each in asked]
        assert {each.state for each in outcomes} == {COMPLETED_STATE}
        submissions = [each.submission for each in asked]
        assert submissions[0] is submissions[2] is not submissions[3]
        assert len({each.id for each in asked}) == 4
        for each in asked:
            heard = [told for told in events(each).told if told != "accepted"]
            assert heard == ["one", "two"]
            assert node.kept_output(each.id) is None

    in_mesh(tmp_path, program, say=say)


def test_what_is_not_heard_brings_its_outcome_alone(tmp_path: Path) -> None:
    async def program(node: AsyncNode) -> None:
        (asked,) = tasks(1)
        node.followed.submit([asked], is_heard=False)
        await events(asked).over()
        assert events(asked).told in (["accepted"], [])  # the end may come first

    in_mesh(tmp_path, program, say=say)


def test_a_cancelled_task_ends_as_that_wherever_it_is(tmp_path: Path) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    def wait(data: Mapping[str, Any], context: TaskContext) -> None:
        has_begun.set()
        while not context.is_cancelled and not may_end.wait(0.01):
            pass

    async def program(node: AsyncNode) -> None:
        never, fresh, running = tasks(3, "wait")
        node.followed.submit([never, fresh], is_heard=True)
        node.followed.cancel_soon(never)  # before it was submitted
        await asyncio.sleep(0)
        node.followed.cancel_soon(fresh)
        assert (await events(fresh).over()).state == CANCELLED_STATE
        assert never.id == ""
        node.followed.submit([running], is_heard=True)
        await asyncio.to_thread(has_begun.wait, PATIENCE_S)
        node.followed.cancel_soon(running)
        assert (await events(running).over()).state == CANCELLED_STATE
        node.followed.cancel_soon(running)  # it is over
        may_end.set()

    in_mesh(tmp_path, program, wait=wait)


def test_a_repeated_key_has_the_task_of_the_first_time_and_another_body_is_refused(
    tmp_path: Path,
) -> None:
    async def program(node: AsyncNode) -> None:
        first, again, other = tasks(3)
        node.followed.submit_keyed([first], "k", b"1", is_heard=True)
        outcome = await events(first).over()
        node.followed.submit_keyed([again], "k", b"1", is_heard=True)
        assert await events(again).over() == outcome
        assert (again.id, again.is_repeat) == (first.id, True)
        node.followed.submit_keyed([other], "k", b"2", is_heard=True)
        with pytest.raises(KeyConflictError):
            await events(other).over()

    in_mesh(tmp_path, program, say=say)


def test_when_the_node_ends_who_follows_is_told(tmp_path: Path) -> None:
    asked: list[FollowedTask] = []

    async def program(node: AsyncNode) -> None:
        asked.extend(tasks(1, "nobody_runs_this"))
        node.followed.submit(asked, is_heard=True)
        while "accepted" not in events(asked[0]).told:
            await asyncio.sleep(0.01)

    in_mesh(tmp_path, program)
    assert isinstance(events(asked[0]).error, NodeClosedError)
