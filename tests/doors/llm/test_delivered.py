"""What is told to be erased once its caller has it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from d8mesh.core.client.submission import TaskOutcome
from d8mesh.core.protocol.messages import CANCELLED_STATE, Group
from d8mesh.doors.llm.delivered import KEYED_KEPT_S, DeliveredAnswers
from d8mesh.nodes.client.aio.followed import FollowedTask
from tests.in_loop import in_loop


class Told:
    """Remembers what was told."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.tasks: list[tuple[str, Any, float]] = []

    def deliver(self, task_id: str, rest: bytes, keep_s: float = 0.0) -> None:
        self.tasks.append((task_id, msgspec.msgpack.decode(rest), keep_s))


class Follower:
    """A task that has ended."""

    task: FollowedTask
    result: dict[str, Any] | None = None


RESULT = {"success": True, "output": "secret", "thinking": "hm", "model": "m", "usage": {}}


@in_loop
async def test_facts_and_figures_stay_and_what_was_said_goes() -> None:
    told = Told()
    delivered = DeliveredAnswers(told, keeps_all=False)
    delivered.add("t-1", RESULT, has_key=False)
    delivered.add("t-2", RESULT, has_key=True)
    assert told.tasks == []  # together, a moment later
    delivered.tell()
    rest = {"success": True, "model": "m", "usage": {}}
    assert told.tasks == [("t-1", rest, 0.0), ("t-2", rest, KEYED_KEPT_S)]


@in_loop
async def test_where_chats_are_kept_nothing_is_told() -> None:
    told = Told()
    delivered = DeliveredAnswers(told, keeps_all=True)
    delivered.add("t-1", RESULT, has_key=False)
    delivered.tell()
    assert told.tasks == []


@in_loop
async def test_what_was_asked_by_who_has_left_goes_when_it_has_ended() -> None:
    told = Told()
    delivered = DeliveredAnswers(told, keeps_all=False)
    task = FollowedTask(Group("agent_action", 8, [b"\x80"]), Follower())  # type: ignore[arg-type]
    delivered.when_ended(task, has_key=False)
    task.follower.ended(TaskOutcome(CANCELLED_STATE, msgspec.msgpack.encode({"error": "gone"})))
    delivered.tell()
    assert told.tasks == []  # it never was a task: there is nothing to erase
