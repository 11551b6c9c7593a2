"""Bodies: what is wrong is named, what fits becomes groups."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.doors.rest.schemas import (
    NamedReport,
    Register,
    Report,
    SubmitBatch,
    SubmitOne,
    batch_of,
    convert,
    idempotency_key,
    registration_of,
    report_of,
    submit_of,
)
from d8mesh.errors import InvalidTaskError, PayloadTooLargeError
from d8mesh.nodes.client.groups import digest_of, groups_of, size_of
from d8mesh.nodes.client.wishes import wish_of

BAD_TASKS: list[tuple[Any, str]] = [
    (None, "the body is null"),
    ([], "the body is an array"),
    ("x", "the body is a text"),
    (7, "the body is a number"),
    ({}, "Missing field: type"),
    ({"type": "t"}, "Missing field: data"),
    ({"type": "", "data": {}}, "type: "),
    ({"type": "t" * 129, "data": {}}, "type: "),
    ({"type": 5, "data": {}}, "type: "),
    ({"type": "a\nb", "data": {}}, "type: expected printable"),
    ({"type": "t", "data": None}, "data: "),
    ({"type": "t", "data": []}, "data: "),
    ({"type": "t", "data": {}, "priority": 0}, "priority: "),
    ({"type": "t", "data": {}, "priority": 11}, "priority: "),
    ({"type": "t", "data": {}, "priority": "5"}, "priority: "),
    ({"type": "t", "data": {}, "priority": 5.5}, "priority: "),
    ({"type": "t", "data": {}, "priority": True}, "priority: "),
    ({"type": "t", "data": {}, "deadline_s": 0}, "deadline_s: "),
    ({"type": "t", "data": {}, "deadline_s": "soon"}, "deadline_s: "),
    ({"type": "t", "data": {}, "max_attempts": 0}, "max_attempts: "),
    ({"type": "t", "data": {}, "max_attempts": 101}, "max_attempts: "),
    ({"type": "t", "data": {}, "fenced": 1}, "fenced: "),
    ({"type": "t", "data": {}, "run_at": -1}, "run_at: "),
    ({"type": "agent_action", "data": {"model": 5}}, "data.model: "),
    ({"type": "agent_action", "data": {"model_strict": "yes"}}, "data.model_strict: "),
    *(
        ({"type": kind, "data": {"model": model}}, "data.model: ")
        for kind in ("agent_action", "code_generation")
        for model in ("../../x", "http://x/y", "-rm", "a" * 10_240, "a\x1b[31m", "a b", "x/../y")
    ),
]


@pytest.mark.parametrize(("body", "why"), BAD_TASKS)
def test_a_bad_task_is_refused_by_its_field(body: Any, why: str) -> None:
    with pytest.raises(InvalidTaskError) as caught:
        groups_of([convert(body, SubmitOne)], is_batch=False)
    assert str(caught.value).startswith(why)
    assert len(str(caught.value)) < 400


def test_a_batch_names_the_task() -> None:
    with pytest.raises(InvalidTaskError, match=r"Missing field: tasks\[1\].data"):
        convert({"tasks": [{"type": "t", "data": {}}, {"type": "t"}]}, SubmitBatch)
    with pytest.raises(InvalidTaskError, match=r"tasks\[1\]\.priority: "):
        convert(
            {"tasks": [{"type": "t", "data": {}}] * 1 + [{"type": "t", "data": {}, "priority": 0}]},
            SubmitBatch,
        )
    bad = convert({"tasks": [{"type": "agent_action", "data": {"model": "-x"}}]}, SubmitBatch)
    with pytest.raises(InvalidTaskError, match=r"tasks\[0\]\.data\.model"):
        groups_of(bad.tasks, is_batch=True)


@pytest.mark.parametrize("count", [0, 10_001])
def test_a_batch_has_1_to_10000_tasks(count: int) -> None:
    with pytest.raises(InvalidTaskError, match="tasks: "):
        convert({"tasks": [{"type": "t", "data": {}}] * count}, SubmitBatch)


def test_a_missing_field_is_told_as_ever() -> None:
    with pytest.raises(InvalidTaskError, match=r"^Missing field: worker_id$"):
        convert({"worker_type": "x", "capabilities": {}}, Register)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("worker_id", "a/b"),
        ("worker_id", "\x1b[31mred"),
        ("worker_type", "a\nb"),
        ("capabilities", {"x": "y" * 70_000}),
        ("capabilities.task_types", {"task_types": "z"}),
        (r"capabilities.task_types\[0\]", {"task_types": [1]}),
        (r"capabilities.task_types\[0\]", {"task_types": [""]}),
    ],
)
def test_a_registration_can_be_shown_and_kept(field: str, value: Any) -> None:
    body = {"worker_id": "w", "worker_type": "t", "capabilities": {}}
    registration_of(msgspec.json.encode(body))
    with pytest.raises(InvalidTaskError, match=f"{field}: "):
        registration_of(msgspec.json.encode(body | {field.partition(".")[0]: value}))


@pytest.mark.parametrize(
    "capabilities",
    [
        {},
        {"task_types": None, "models": None, "slots": None},
        {"task_types": [], "models": "llama", "slots": "four"},
        {"model": "llama", "max_tokens": 4096, "languages": {"python": True}},
    ],
)
def test_what_a_worker_may_say_of_itself_passes(capabilities: dict[str, Any]) -> None:
    body = {"worker_id": "w", "worker_type": "t", "capabilities": capabilities}
    registration_of(msgspec.json.encode(body))


def test_tasks_that_are_alike_share_a_group_and_keep_their_order() -> None:
    tasks = [SubmitOne("a", {"n": n}, priority=5 if n < 3 else 6) for n in range(5)]
    groups = groups_of(tasks, is_batch=True)
    assert [len(group.payloads) for group in groups] == [3, 2]
    datas = [msgspec.msgpack.decode(p) for group in groups for p in group.payloads]
    assert datas == [{"n": n} for n in range(5)]


def test_the_model_of_an_llm_task_is_a_wish() -> None:
    for kind, wish in (("agent_action", "llama-3.3-70b"), ("other", "")):
        (group,) = groups_of([SubmitOne(kind, {"model": "llama-3.3-70b"})], is_batch=False)
        assert group.model == wish


def test_a_wish_that_is_a_must_is_marked() -> None:
    assert wish_of("agent_action", {"model": "llama", "model_strict": True}) == "=llama"
    assert wish_of("agent_action", {"model": "llama", "model_strict": False}) == "llama"
    assert wish_of("agent_action", {"model_strict": True}) == ""
    assert wish_of("echo", {"model": "llama", "model_strict": True}) == ""


def test_too_much_data_is_told() -> None:
    with pytest.raises(PayloadTooLargeError, match="data: "):
        groups_of([SubmitOne("t", {"x": "a" * (33 * 1024 * 1024)})], is_batch=False)
    half = SubmitOne("t", {"x": "a" * (17 * 1024 * 1024)})
    with pytest.raises(PayloadTooLargeError, match="together"):
        size_of(groups_of([half, half], is_batch=True))


def test_the_same_body_has_the_same_digest() -> None:
    def digest(n: int) -> bytes:
        return digest_of(groups_of([SubmitOne("t", {"n": n})], is_batch=False))

    assert digest(1) == digest(1) != digest(2)


def test_idempotency_keys_are_printable() -> None:
    assert idempotency_key(None) == ""
    assert idempotency_key("a b-1") == "a b-1"
    for bad in ("", "x" * 129, "a\tb", "ñ"):
        with pytest.raises(InvalidTaskError, match="Idempotency-Key"):
            idempotency_key(bad)


@pytest.mark.parametrize("kind", [Report, NamedReport])
def test_a_result_nested_too_deeply_is_refused(kind: Any) -> None:
    body = b'{"task_id": "t", "worker_id": "w", "result": {"output": %s1%s}}'
    assert report_of(kind, body % (b"[" * 50, b"]" * 50)).worker_id == "w"
    with pytest.raises(InvalidTaskError, match="nested"):
        report_of(kind, body % (b"[" * 200, b"]" * 200))


def test_a_submit_is_one_schema_with_its_warnings() -> None:
    wanted = submit_of(b'{"type": "t", "data": {"n": 1}, "listen": true, "prio": 2}')
    assert [group.payloads for group in wanted.groups] == [[msgspec.msgpack.encode({"n": 1})]]
    assert wanted.is_listened
    assert wanted.warnings == ["unknown key 'prio': did you mean 'priority'?"]
    body = b'{"tasks": [{"type": "t", "data": {}}, {"type": "t", "data": {}, "listen": true}]}'
    with pytest.raises(InvalidTaskError, match="listen"):
        batch_of(body)
