"""An answer that is streamed: nothing is lost, nothing twice, and no attempt begins anew unseen."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from d8mesh.core.client.submission import TaskOutcome
from d8mesh.core.protocol.messages import COMPLETED_STATE, FAILED_STATE, Group, Stream
from d8mesh.doors.llm import streamed
from d8mesh.doors.llm.asked import LlmTask
from d8mesh.doors.llm.streamed import StreamedAnswer
from d8mesh.errors import BackendError, D8Error
from d8mesh.nodes.client.aio.followed import FollowedTask
from tests.doors.llm.plain_door import LineForm, said
from tests.in_loop import in_loop

CHAT = LlmTask(type="agent_action", data={}, model="m")
GROUP = Group("agent_action", 8, [b"\x80"])


class Sink:
    """Where an answer is written to; it may be full."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.on_room: Any = None
        self.is_full = self.is_over = False

    def abort(self) -> None:
        raise AssertionError

    def write_part(self, body: bytes, *, has_more: bool) -> None:
        self.parts.append(body)
        self.is_over = not has_more

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in b"".join(self.parts).splitlines()]


def begun(count: int = 1, comment: bytes = b"") -> tuple[StreamedAnswer, list[StreamedAnswer]]:
    over: list[StreamedAnswer] = []
    answer = StreamedAnswer(asyncio.get_running_loop(), LineForm(comment), over.append)
    for each in answer.followers_of([CHAT] * count):
        FollowedTask(GROUP, each)
    return answer, over


def heard(first_seq: int, *texts: str, attempt: int = 1) -> Stream:
    payloads = [msgspec.msgpack.encode({"text": text}) for text in texts]
    return Stream("0123456789abcdef-0", attempt, first_seq, payloads)


def ended(text: str, state: int = COMPLETED_STATE, **more: Any) -> TaskOutcome:
    told = {"success": state == COMPLETED_STATE, "output": text, "error": text, **more}
    return TaskOutcome(state, msgspec.msgpack.encode(told))


async def read(answer: StreamedAnswer) -> Sink:
    sink = Sink()
    await answer.pushed(sink)
    return sink


@in_loop
async def test_pieces_go_on_and_the_last_one_has_the_ending() -> None:
    answer, over = begun()
    (speaker,) = answer.speakers
    speaker.heard(heard(0, "a"))
    speaker.heard(heard(1, "b", "c"))
    speaker.ended(ended("abcd", finish_reason="length"))
    sink = await read(answer)
    assert [line.get("text") for line in sink.lines] == [None, "a", "bc", "d", None]
    assert sink.lines[-2]["reason"] == "length"
    assert sink.lines[-1] == {"done": True}
    assert sink.is_over
    assert over == [answer]


@in_loop
async def test_what_comes_again_is_not_said_again() -> None:
    answer, _ = begun()
    (speaker,) = answer.speakers
    for stream in (heard(0, "a", "b"), heard(0, "a", "b", "c"), heard(1, "b"), heard(0, "a")):
        speaker.heard(stream)
    speaker.ended(ended("abc"))
    assert said((await read(answer)).lines) == "abc"


@in_loop
async def test_what_is_lost_on_the_way_comes_from_the_finished_answer() -> None:
    answer, _ = begun()
    (speaker,) = answer.speakers
    speaker.heard(heard(0, "a"))
    speaker.heard(heard(2, "c"))  # after a gap nothing fits any more
    speaker.heard(heard(3, "d"))
    speaker.ended(ended("abcde"))
    assert [line.get("text") for line in (await read(answer)).lines[1:-1]] == ["a", "bcde"]


@in_loop
async def test_an_attempt_that_has_said_nothing_is_followed_by_another_unseen() -> None:
    answer, _ = begun()
    (speaker,) = answer.speakers
    speaker.heard(heard(0, attempt=1))
    speaker.heard(heard(2, "c", attempt=1))  # its beginning was lost: nothing was said
    speaker.heard(heard(0, "x", attempt=2))
    speaker.heard(heard(3, "d", attempt=1))
    speaker.ended(ended("xyz"))
    assert said((await read(answer)).lines) == "xyz"


@in_loop
async def test_an_attempt_that_has_spoken_is_followed_by_no_other() -> None:
    answer, over = begun()
    (speaker,) = answer.speakers
    speaker.heard(heard(0, "a"))
    speaker.heard(heard(0, attempt=2))
    speaker.heard(heard(0, "x", attempt=2))
    lines = (await read(answer)).lines
    assert lines[-1]["code"] == "backend.stalled"
    assert said(lines) == "a"
    assert over == [answer]
    assert answer.left() == [speaker.task]


@in_loop
async def test_a_finished_answer_that_is_another_ones_is_an_error() -> None:
    answer, _ = begun()
    (speaker,) = answer.speakers
    speaker.heard(heard(0, "a"))
    speaker.ended(ended("xyz"))
    assert (await read(answer)).lines[-1]["code"] == "backend.stalled"


@in_loop
async def test_an_error_before_the_first_word_is_raised() -> None:
    answer, over = begun()
    answer.speakers[0].ended(ended("bad", FAILED_STATE))
    with pytest.raises(BackendError, match="bad"):
        await answer.begun()
    assert over == [answer]


@in_loop
async def test_several_tasks_end_together_and_fail_together() -> None:
    answer, _ = begun(2)
    first, second = answer.speakers
    first.heard(heard(0, "a"))
    first.ended(ended("a"))
    assert not answer.is_over
    second.ended(ended("b"))
    lines = (await read(answer)).lines
    assert (said(lines, 0), said(lines, 1), lines[-1]) == ("a", "b", {"done": True})
    answer, _ = begun(2)
    first, second = answer.speakers
    first.heard(heard(0, "a"))
    second.ended(ended("bad", FAILED_STATE))
    assert (await read(answer)).lines[-1]["error"] == "bad"
    assert answer.left() == [first.task]


@in_loop
async def test_what_one_turn_of_the_loop_brings_is_written_together() -> None:
    answer, _ = begun()
    (speaker,) = answer.speakers
    sink = Sink()
    reading = asyncio.create_task(answer.pushed(sink))
    await asyncio.sleep(0)
    for n, text in enumerate("abc"):
        speaker.heard(heard(n, text))
    await asyncio.sleep(0)
    assert len(sink.parts) == 1
    speaker.ended(ended("abc"))
    await reading
    assert len(sink.parts) == 2


@in_loop
async def test_who_does_not_read_is_written_the_rest_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streamed, "MAX_UNREAD_BYTES", 100)
    answer, _ = begun()
    (speaker,) = answer.speakers
    sink = Sink()
    sink.is_full = True
    reading = asyncio.create_task(answer.pushed(sink))
    await asyncio.sleep(0)
    for n in range(50):
        speaker.heard(heard(n, "x"))
    assert answer._unread_bytes < 200
    speaker.ended(ended("x" * 50))
    sink.is_full = False
    sink.on_room()
    await reading
    assert said(sink.lines) == "x" * 50


@in_loop
async def test_comments_tell_that_we_live_and_errors_come_after_them_in_the_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streamed, "SSE_SILENCE_S", 0.01)
    answer, _ = begun(comment=b'{"alive":1}\n')
    await answer.begun()
    answer.speakers[0].ended(ended("bad", FAILED_STATE))
    lines = (await read(answer)).lines
    assert lines[1] == {"alive": 1}
    assert lines[-1]["error"] == "bad"


@in_loop
async def test_who_cannot_be_called_reads_the_same() -> None:
    answer, _ = begun()
    (speaker,) = answer.speakers
    parts = answer.parts()
    speaker.heard(heard(0, "a"))
    first = await anext(parts)
    speaker.ended(ended("ab"))
    rest = b"".join([part async for part in parts])
    assert said([json.loads(line) for line in (first + rest).splitlines()]) == "ab"


@in_loop
async def test_who_leaves_ends_it_once() -> None:
    answer, over = begun()
    answer.speakers[0].heard(heard(0, "a"))
    answer.leave()
    answer.leave()
    answer.fail(D8Error())
    assert over == [answer]
    assert answer.error is None
