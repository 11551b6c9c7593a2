"""Check 40, and files and batches by the official client, unmodified, over real processes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.doors.llm_mesh import CHAT, EMBEDDER, LlmMesh, llm_mesh, machine
from tests.end_to_end.processes import until

CHATS = "/v1/chat/completions"
TERMINAL = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    with llm_mesh(machine(tokens_per_s=2000)) as made:
        yield made


@pytest.fixture
def client(mesh: LlmMesh) -> Iterator[openai.OpenAI]:
    mesh.mend()
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def line(custom_id: str, endpoint: str = CHATS, **body: Any) -> str:
    whole = {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body}
    return json.dumps(whole)


def chat(custom_id: str, model: str = CHAT, text: str = "hello there") -> str:
    return line(custom_id, model=model, messages=[{"role": "user", "content": text}])


def made(client: openai.OpenAI, *rows: str, endpoint: Any = CHATS, **more: Any) -> Batch:
    content = io.BytesIO("\n".join(rows).encode())
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    found = [batch]

    def has_ended() -> bool:
        found[0] = client.batches.retrieve(batch.id)
        return found[0].status in TERMINAL

    until(has_ended, "the batch")
    return found[0]


def lines_of(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id
    rows = [json.loads(row) for row in client.files.content(file_id).text.splitlines()]
    found = {row["custom_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_check_40_a_batch_whose_lines_all_name_an_unknown_model_is_completed(
    client: openai.OpenAI,
) -> None:
    batch = ended(client, made(client, *[chat(f"c{n}", "nobody-has:this") for n in range(4)]))
    assert batch.status == "completed"
    assert batch.output_file_id is None
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 4, "completed": 0, "failed": 4}
    rows = lines_of(client, batch.error_file_id)
    assert rows.keys() == {"c0", "c1", "c2", "c3"}
    for row in rows.values():
        assert (row["response"]["status_code"], row["error"]) == (404, None)
        assert row["response"]["body"]["error"]["code"] == "model_not_found"


def test_a_batch_of_chats_is_answered_and_tells_its_tokens(
    client: openai.OpenAI, mesh: LlmMesh
) -> None:
    batch = ended(client, made(client, chat("a"), chat("b", f"{CHAT}"), metadata={"x": "y"}))
    assert (batch.status, batch.error_file_id, batch.model) == ("completed", None, CHAT)
    rows = lines_of(client, batch.output_file_id)
    for row in rows.values():
        body = row["response"]["body"]
        assert row["id"].startswith("batch_req_")
        assert body["choices"][0]["message"]["content"]
        assert (body["model"], row["response"]["request_id"]) == (CHAT, body["id"][9:])
    assert batch.usage is not None
    usages = [row["response"]["body"]["usage"] for row in rows.values()]
    assert batch.usage.total_tokens == sum(each["total_tokens"] for each in usages) > 0
    task_id = rows["a"]["response"]["request_id"]
    task = json.loads(mesh.get(f"/api/tasks/status/{task_id}").body)
    assert (task["door"], task["caller"].split()[0]) == ("batches", "127.0.0.1")


def test_what_was_asked_and_answered_is_erased_once_it_is_in_the_file(
    client: openai.OpenAI, mesh: LlmMesh
) -> None:
    batch = ended(client, made(client, chat("a", text="a secret")))
    task_id = lines_of(client, batch.output_file_id)["a"]["response"]["request_id"]

    def is_erased() -> bool:
        task = json.loads(mesh.get(f"/api/tasks/status/{task_id}").body)
        return bool(task["erased"])

    until(is_erased, "its text to go")


def test_embeddings_come_as_they_are_asked_for(client: openai.OpenAI) -> None:
    endpoint = "/v1/embeddings"
    rows = [
        line("a", endpoint, model=EMBEDDER, input=["x", "y"]),
        line("b", endpoint, model=EMBEDDER, input="x", encoding_format="base64"),
    ]
    found = lines_of(client, ended(client, made(client, *rows, endpoint=endpoint)).output_file_id)
    assert [each["index"] for each in found["a"]["response"]["body"]["data"]] == [0, 1]
    assert isinstance(found["b"]["response"]["body"]["data"][0]["embedding"], str)


def test_responses_and_completions_are_answered_too(client: openai.OpenAI) -> None:
    told: dict[Any, Any] = {
        "/v1/responses": {"input": "hi"},
        "/v1/completions": {"prompt": "hi"},
    }
    for endpoint, body in told.items():
        batch = ended(
            client, made(client, line("a", endpoint, model=CHAT, **body), endpoint=endpoint)
        )
        assert lines_of(client, batch.output_file_id)["a"]["response"]["status_code"] == 200


def test_a_file_with_faults_tells_each_with_its_line(client: openai.OpenAI) -> None:
    batch = ended(client, made(client, chat("a"), "{", chat("a"), line("b", "/v1/embeddings")))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(each.line, each.code) for each in batch.errors.data or []] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "url_mismatch"),
    ]


def test_a_batch_is_cancelled_and_keeps_what_was_answered(
    client: openai.OpenAI, mesh: LlmMesh
) -> None:
    batch = made(client, *[chat(f"c{n}", text="say 400 words") for n in range(400)])

    def has_begun() -> bool:
        counts = client.batches.retrieve(batch.id).request_counts
        return bool(counts and counts.completed)

    until(has_begun, "the first answers")
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    over = ended(client, batch)
    assert over.status == "cancelled"
    answered = lines_of(client, over.output_file_id)
    left = lines_of(client, over.error_file_id)
    assert len(answered) + len(left) == 400
    assert not answered.keys() & left.keys()
    assert {row["error"]["code"] for row in left.values()} == {"batch_cancelled"}
    until(lambda: not [each for each in mesh.tasks() if each["status"] == "running"], "its end")


def test_files_are_listed_page_by_page_read_and_deleted(client: openai.OpenAI) -> None:
    given = [
        client.files.create(file=(f"{n}.txt", b"%d" % n * 100_000), purpose="user_data")
        for n in range(3)
    ]
    pages = client.files.list(purpose="user_data", limit=2)
    assert [each.id for each in pages] == [each.id for each in reversed(given)]
    assert client.files.content(given[2].id).read() == b"2" * 100_000
    assert client.files.wait_for_processing(given[0].id).status == "processed"
    for each in given:
        assert client.files.delete(each.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(given[0].id)


def test_what_is_wrong_is_raised_by_the_client_as_at_openai(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"Must be \.jsonl"):
        client.files.create(file=("in.txt", b"x"), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="input_file_id"):
        client.batches.create(
            input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h"
        )
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")


def test_batches_are_listed_the_newest_first(client: openai.OpenAI) -> None:
    batches = [ended(client, made(client, chat("a"))) for _ in range(2)]
    assert [each.id for each in client.batches.list(limit=1)][:2] == [
        each.id for each in reversed(batches)
    ]
