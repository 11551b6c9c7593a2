"""Requests of language models as tasks, over a real mesh with stand-ins of Ollama."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from d8mesh.core.broker import patience
from d8mesh.doors.llm import chats, delivered, streamed
from tests.doors.llm.plain_door import ChatMesh, KnownNames, said
from tests.nodes.mesh import PATIENCE_S, until
from tests.ollama_standin import OllamaStandin
from tests.standin.faults import Kind


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatMesh]:
    with ExitStack() as stack:
        mesh = ChatMesh(tmp_path_factory.mktemp("chats"), stack)
        mesh.machine()
        yield mesh


def test_an_answer_is_streamed_while_it_is_said(one: ChatMesh) -> None:
    first, *pieces, last = one.lines(30)
    assert last == {"done": True}
    (task_id,) = first["tasks"]
    assert one.status(task_id)["state"] == "completed"
    assert len(said(pieces).split()) == 30
    assert pieces[-1]["reason"] == "stop"


def test_a_whole_answer_tells_who_gave_it(one: ChatMesh) -> None:
    with one.ask(5, stream=False) as asked:
        assert asked.status == 200
        body = asked.json()
        headers = asked.answer.headers
    assert [len(text.split()) for text in body["texts"]] == [5]
    assert headers["X-D8-Task"] == body["tasks"][0]
    assert headers["X-D8-Model"] == "m:1b"
    assert headers["X-D8-Fallback"] == "no"
    assert headers["X-D8-Machine"]


def test_several_answers_are_several_tasks(one: ChatMesh) -> None:
    lines = one.lines(4, n=3)
    assert len(set(lines[0]["tasks"])) == 3
    assert [len(said(lines, index).split()) for index in range(3)] == [4, 4, 4]
    assert lines[-1] == {"done": True}


# ----------------------------------------------------------------------------- who can do it


def test_a_model_that_nobody_has_is_refused_before_anything_is_submitted(tmp_path: Path) -> None:
    with ExitStack() as stack:
        mesh = ChatMesh(tmp_path, stack, KnownNames(frozenset({"completion"}), frozenset({"m:1b"})))
        for stream in (True, False):
            with mesh.ask(model="other", stream=stream) as asked:
                assert (asked.status, asked.json()["code"]) == (404, "model.unknown")
        tool = {"type": "function", "function": {"name": "f"}}
        with mesh.ask(model="M:1B", tools=[tool]) as asked:
            assert (asked.status, asked.json()["code"]) == (400, "model.unfit")
        assert mesh.tasks() == []


def test_only_a_caller_may_name_a_model_that_answers_in_the_place_of_another(
    one: ChatMesh,
) -> None:
    headers = {"X-D8-Models": "also-gone, m:1b"}
    with one.ask(2, model="gone:1b", stream=False, headers=headers) as asked:
        assert asked.status == 200
        told = asked.answer.headers
    assert (told["X-D8-Model"], told["X-D8-Fallback"]) == ("m:1b", "yes")


# ------------------------------------------------------------------------------- failing over


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatMesh]:
    with ExitStack() as stack:
        mesh = ChatMesh(tmp_path_factory.mktemp("two"), stack)
        mesh.machine()
        mesh.machine()
        yield mesh


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("kind", [Kind.FAST_FAIL, Kind.CUT, Kind.NO_DONE, Kind.BUSY])
def test_before_its_first_word_another_machine_takes_over_unseen(
    two: ChatMesh, kind: Kind, stream: bool
) -> None:
    for standin in two.standins:
        standin.fault(kind, after=0, times=1)
    try:
        with two.ask(5, stream=stream) as asked:
            assert asked.status == 200, asked.text()
            if stream:
                lines = list(asked)
                assert len(said(lines).split()) == 5
                assert lines[-1] == {"done": True}
            else:
                assert len(asked.json()["texts"][0].split()) == 5
    finally:
        for standin in two.standins:
            standin.mend()


def test_a_whole_answer_moves_to_another_machine_whenever_the_first_breaks_off(
    two: ChatMesh,
) -> None:
    for standin in two.standins:
        standin.fault(Kind.CUT, after=3, times=1)
    with two.ask(9, stream=False) as asked:
        assert asked.status == 200, asked.text()
        assert len(asked.json()["texts"][0].split()) == 9


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.NO_DONE, Kind.ERROR_LINE])
def test_after_its_first_word_an_answer_that_breaks_off_ends_with_an_error(
    tmp_path: Path, kind: Kind
) -> None:
    with ExitStack() as stack:
        mesh = ChatMesh(tmp_path, stack)
        mesh.machine(tokens_per_s=100.0).fault(kind, after=3, times=1)
        first, *lines, last = mesh.lines(9)
        assert said(lines).split() == ["w0", "w1", "w2"]
        assert last["code"] == "backend.stalled"
        assert [last["task"]] == first["tasks"]
        assert last["task"] in last["error"]
        until(lambda: mesh.status(last["task"])["state"] == "cancelled")


# -------------------------------------------------------------------------- callers who leave


def seen_after(standin: OllamaStandin, leave: Callable[[], None]) -> float:
    """Return after how many seconds the stand-in sees that a caller has left."""
    before = len(standin.counters.cancelled)
    left = time.monotonic()
    leave()
    standin.wait_until(lambda: len(standin.counters.cancelled) > before)
    return standin.counters.cancelled[-1].at - left


def quickest(tries: Iterator[float]) -> float:
    """Return the shortest of some: what others do on this machine only makes it longer."""
    return min(tries)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_who_leaves_before_the_first_word_ends_the_request_at_its_backend(
    one: ChatMesh, stream: bool
) -> None:
    (standin,) = one.standins
    standin.change(settings={"prompt_tokens_per_s": 0.2})

    def tries() -> Iterator[float]:
        for _ in range(3):
            asked = one.ask(5, stream=stream)
            standin.wait_until(lambda: standin.running == 1)
            yield seen_after(standin, asked.leave)
            assert standin.counters.cancelled[-1].phase == "prompt"

    try:
        assert quickest(tries()) < 0.1
    finally:
        standin.change(settings={"prompt_tokens_per_s": 0.0})


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_who_leaves_in_the_middle_ends_the_request_at_its_backend(
    one: ChatMesh, stream: bool
) -> None:
    (standin,) = one.standins
    standin.change(settings={"tokens_per_s": 50.0})

    def tries() -> Iterator[float]:
        for _ in range(3):
            standin.reset()
            asked = one.ask(500, stream=stream)
            standin.wait_until(lambda: standin.counters.tokens > 2)
            yield seen_after(standin, asked.leave)
            assert standin.counters.cancelled[-1].phase == "output"

    assert quickest(tries()) < 0.1
    until(lambda: not one.chats.count)
    states = {each["state"] for each in one.tasks()}
    assert states <= {"completed", "failed", "cancelled"}


def test_who_leaves_while_it_waits_in_line_is_never_asked_for(one: ChatMesh) -> None:
    (standin,) = one.standins
    standin.change(settings={"tokens_per_s": 50.0})
    with ExitStack() as stack:
        while not one.tasks("queued"):  # how many it takes at once is learnt
            stack.enter_context(one.ask(500))
        known = {each["task_id"] for each in one.tasks()}
        asked = one.ask(7, stream=False)
        until(lambda: {each["task_id"] for each in one.tasks("queued")} - known)
        (waiting,) = {each["task_id"] for each in one.tasks()} - known
        asked.leave()
        until(lambda: one.status(waiting)["state"] == "cancelled")
    until(lambda: not one.chats.count)
    assert not any("say 7 words" in str(body) for body in standin.chats)


# ------------------------------------------------------------------------------ asking again


def test_who_asks_again_with_the_same_key_gets_the_same_answer(one: ChatMesh) -> None:
    (standin,) = one.standins
    standin.change(settings={"tokens_per_s": 50.0})
    key = {"Idempotency-Key": "once"}
    asked = one.ask(20, headers=key)
    (task_id,) = next(iter(asked))["tasks"]
    asked.leave()
    count = len(standin.chats)
    for stream in (True, False, True):  # while it runs, and after
        with one.ask(20, stream=stream, headers=key) as again:
            assert again.status == 200
            assert again.answer.headers["X-D8-Task"] == task_id
            text = said(list(again)) if stream else again.json()["texts"][0]
            assert [f"w{n}" for n in range(20)] == text.split()
    assert len(standin.chats) == count
    with one.ask(21, headers=key) as other:
        assert (other.status, other.json()["code"]) == (409, "key.conflict")


# ------------------------------------------------------------------------------------ bounds


def test_more_than_may_be_open_are_told_to_come_again(
    one: ChatMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.standins[0].change(settings={"tokens_per_s": 50.0})
    monkeypatch.setattr(chats, "MAX_OF_ADDRESS", 2)
    with one.ask(500), one.ask(500):
        until(lambda: one.chats.count == 2)
        with one.ask(5, stream=False) as refused:
            assert (refused.status, refused.json()["code"]) == (429, "access.flood")
            assert int(refused.answer.headers["Retry-After"]) <= 120
    until(lambda: not one.chats.count)
    assert one.lines(5)[-1] == {"done": True}


def test_comments_are_sent_while_nothing_is_said_and_errors_come_in_the_form(
    one: ChatMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "SSE_SILENCE_S", 0.05)
    one.standins[0].change(settings={"prompt_tokens_per_s": 6.0})
    try:
        lines = one.lines(5, comment='{"alive":1}\n')
    finally:
        one.standins[0].change(settings={"prompt_tokens_per_s": 0.0})
    assert lines[1:3] == [{"alive": 1}, {"alive": 1}]
    assert len(said(lines).split()) == 5
    assert lines[-1] == {"done": True}


# ----------------------------------------------------------------------------------- the end


def test_who_is_answered_when_the_process_ends_is_told_which_task_goes_on(
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        mesh = ChatMesh(tmp_path, stack)
        standin = mesh.machine(tokens_per_s=50.0)
        streaming, whole = mesh.ask(20), mesh.ask(20, stream=False)
        lines = iter(streaming)
        (task_id,) = next(lines)["tasks"]
        standin.wait_until(lambda: standin.running == 2)
        mesh.loop.loop.call_soon_threadsafe(mesh.chats.end)
        *_, last = lines
        assert (last["code"], last["task"]) == ("node.closed", task_id)
        assert task_id in last["error"]
        assert whole.status == 503
        other_id = next(each["task_id"] for each in mesh.tasks() if each["task_id"] != task_id)
        assert other_id in whole.json()["error"]
        with mesh.ask(5) as late:
            assert late.status == 503
        until(lambda: {each["state"] for each in mesh.tasks()} == {"completed"})
        streaming.leave()
        whole.leave()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_when_every_machine_fails_a_request_ends_with_the_last_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(patience, "HOPELESS_S", 0.5)
    with ExitStack() as stack:
        mesh = ChatMesh(tmp_path, stack)
        for _ in range(2):
            mesh.machine().fault(Kind.LOAD_FAIL)
        with mesh.ask(5, stream=stream) as asked:
            assert asked.status == 502
            assert asked.json()["code"].startswith("backend.")


# -------------------------------------------------------------------------------- delivered


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_what_was_asked_and_answered_is_erased_when_the_caller_has_it(
    one: ChatMesh, stream: bool
) -> None:
    with one.ask(6, stream=stream) as asked:
        task_id = asked.answer.headers["X-D8-Task"]
        asked.text()
    until(lambda: one.status(task_id).get("erased"))
    status = one.status(task_id)
    result = msgspec.msgpack.decode(status["result"])
    assert status["state"] == "completed"
    assert "output" not in result
    assert result["usage"]["completion_tokens"]
    assert result["machine"]


def test_what_was_asked_by_who_has_left_is_erased_too(one: ChatMesh) -> None:
    one.standins[0].change(settings={"tokens_per_s": 50.0})
    asked = one.ask(500)
    task_id = asked.answer.headers["X-D8-Task"]
    asked.leave()
    until(lambda: one.status(task_id)["state"] == "cancelled")
    until(lambda: one.status(task_id).get("erased"))


def test_what_was_asked_with_a_key_is_kept_for_who_asks_again(one: ChatMesh) -> None:
    one.standins[0].change(settings={"tokens_per_s": 0.0})
    key = {"Idempotency-Key": "kept"}
    with one.ask(6, stream=False, headers=key) as asked:
        (task_id,) = asked.json()["tasks"]
    one.lines(3)
    until(lambda: one.status(one.tasks()[-1]["task_id"]).get("erased"))
    assert not one.status(task_id).get("erased")
    with one.ask(6, stream=False, headers=key) as again:
        assert again.json()["tasks"] == [task_id]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_who_asks_again_when_the_answer_is_erased_is_told_so(
    one: ChatMesh, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(delivered, "KEYED_KEPT_S", 0.05)
    key = {"Idempotency-Key": f"late {stream}"}
    with one.ask(4, stream=False, headers=key) as asked:
        (task_id,) = asked.json()["tasks"]
    until(lambda: one.status(task_id).get("erased"))
    for _ in range(2):
        with one.ask(4, stream=stream, headers=key) as again:
            assert again.status == 410
            told = again.json()
            assert told["code"] == "task.pruned"
            assert "another Idempotency-Key" in told["error"]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_who_asks_again_with_the_key_of_a_failure_has_it_tried_again(
    one: ChatMesh, stream: bool
) -> None:
    (standin,) = one.standins
    key = {"Idempotency-Key": f"failed {stream}"}
    standin.change(settings={"tokens_per_s": 50.0})
    before = {each["task_id"] for each in one.tasks("running")}  # of other tests, ending still

    def running() -> set[str]:
        return {each["task_id"] for each in one.tasks("running")} - before

    with one.ask(500, stream=stream, headers=key) as asked:
        until(running)
        (task_id,) = running()
        if stream:
            assert asked.status == 200  # it speaks
        one.loop.run(one.client.ask("cancel", {"id": task_id}, PATIENCE_S))
        assert (asked.status == 200) is stream
        assert "task.cancelled" in asked.text()
    standin.change(settings={"tokens_per_s": 0.0})
    for _ in range(2):
        with one.ask(500, stream=stream, headers=key) as again:
            assert again.status == 200
            assert again.answer.headers["X-D8-Task"] != task_id
