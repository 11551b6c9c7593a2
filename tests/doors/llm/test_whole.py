"""An answer that is given as a whole."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from d8mesh.core.client.submission import TaskOutcome
from d8mesh.core.protocol.messages import COMPLETED_STATE, FAILED_STATE, Group
from d8mesh.doors.llm.asked import LlmTask
from d8mesh.doors.llm.whole import WholeAnswer
from d8mesh.errors import BackendError, QueueFullError
from d8mesh.nodes.client.aio.followed import FollowedTask
from tests.in_loop import in_loop

CHAT = LlmTask(type="agent_action", data={}, model="m")
GROUP = Group("agent_action", 8, [b"\x80"])


def ended(text: str, state: int = COMPLETED_STATE) -> TaskOutcome:
    told = {"success": state == COMPLETED_STATE, "output": text, "error": text}
    return TaskOutcome(state, msgspec.msgpack.encode(told))


def begun(count: int) -> WholeAnswer:
    whole = WholeAnswer(asyncio.get_running_loop())
    for each in whole.followers_of([CHAT] * count):
        FollowedTask(GROUP, each)
    return whole


@in_loop
async def test_answers_come_in_the_order_in_which_they_were_asked_for() -> None:
    whole = begun(2)
    whole.parts[1].ended(ended("second"))
    assert whole.left() == [whole.parts[0].task]
    whole.parts[0].ended(ended("first"))
    texts = [each.result["output"] for each in await whole.answers()]
    assert texts == ["first", "second"]
    assert whole.left() == []


@in_loop
async def test_the_first_that_fails_ends_the_wait() -> None:
    whole = begun(2)
    whole.parts[0].ended(ended("bad", FAILED_STATE))
    with pytest.raises(BackendError, match="bad"):
        await whole.answers()
    assert whole.left() == [whole.parts[1].task]
    whole.parts[1].ended(ended("late"))  # nobody minds


@in_loop
async def test_what_is_refused_is_an_error() -> None:
    whole = begun(1)
    whole.parts[0].refused(QueueFullError())
    with pytest.raises(QueueFullError):
        await whole.answers()
    assert whole.left() == []
