"""Models in the shapes of /api/tags, /api/ps and /api/show."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from http import HTTPStatus

import pytest
from ollama import ListResponse, ProcessResponse, ShowResponse

from d8mesh.doors.llm.catalogue import KnownModel, LoadedAt
from d8mesh.doors.ollama.errors import ollama_problem
from d8mesh.doors.ollama.models import ps_body, show_body, tags_body
from d8mesh.doors.ollama.pulls import present_lines, progress_line
from d8mesh.errors import (
    BackendAnswerError,
    BackendMissingError,
    PrunedTaskError,
    QueueFullError,
    TaskFailedError,
)
from d8mesh.http.answers import STATUS, Refusal

DETAILS = {"family": "llama", "format": "gguf"}
MODEL = KnownModel(
    name="m:1b", names=("m:1b",), digest="d" * 64, size_bytes=7, details=DETAILS,
    modified_at="2026-11-01T00:00:00Z", can=frozenset({"tools", "completion"}), context_tokens=4096,
)  # fmt: skip
BARE = KnownModel(name="b", names=("b",))


def test_a_list_has_every_field_and_the_newest_first() -> None:
    rows = tags_body({"b:latest": BARE, "m:1b": MODEL})["models"]
    assert [row["name"] for row in rows] == ["m:1b", "b:latest"]
    assert rows[0] == {
        "name": "m:1b",
        "model": "m:1b",
        "modified_at": "2026-11-01T00:00:00Z",
        "size": 7,
        "digest": "d" * 64,
        "details": rows[0]["details"],
        "capabilities": ["completion", "tools"],
    }
    assert rows[0]["details"]["family"] == "llama"
    assert {"parent_model", "families", "parameter_size", "quantization_level"} <= {
        *rows[1]["details"]
    }
    assert len(ListResponse(**tags_body({"m:1b": MODEL})).models) == 1


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("2026-11-01T00:00:00.123456789+01:00", "2026-11-01T00:00:00.123456789+01:00"),
        ("1795965631108793585", "2026-11-29T15:20:31.108793Z"),
        ("yesterday", "1970-01-01T00:00:00Z"),
        ("", "1970-01-01T00:00:00Z"),
    ],
)
def test_a_time_is_one_that_programs_read(told: str, shown: str) -> None:
    model = KnownModel(name="m", names=("m",), modified_at=told)
    (row,) = tags_body({"m:latest": model})["models"]
    assert row["modified_at"] == shown
    assert ListResponse(models=[row]).models[0].modified_at


def test_a_model_of_the_cloud_says_that_it_is_far() -> None:
    far = KnownModel(name="f", names=("f",), is_cloud=True)
    (row,) = tags_body({"f:latest": far})["models"]
    assert row["remote_model"]
    assert row["remote_host"]


def test_what_is_loaded_is_told_once_with_the_longest_time_first() -> None:
    soon = LoadedAt(machine="pi", service="pi:1", expires_at=2e9, size_vram=3)
    ever = LoadedAt(machine="mac", service="mac:1", expires_at=math.inf, context_length=8192)
    twice = KnownModel(name="t", names=("t", "u"), loaded=(soon, ever))
    once = KnownModel(name="o", names=("o",), loaded=(soon,))
    body = ps_body({"o:latest": once, "t:latest": twice, "u:latest": twice, "m:1b": MODEL})
    assert [row["name"] for row in body["models"]] == ["t:latest", "o:latest"]
    first, second = ProcessResponse(**body).models
    assert first.expires_at is not None
    assert first.expires_at.year > 2300
    assert first.context_length == 8192
    assert second.expires_at == datetime.fromtimestamp(2e9, UTC)
    assert second.size_vram == 3


def test_a_show_is_what_was_told_or_what_can_be_said_without() -> None:
    told = {"model_info": {"a.context_length": 1}, "template": "x", "tensors": [1]}
    assert show_body(MODEL, told) == {"model_info": {"a.context_length": 1}, "template": "x"}
    plain = show_body(MODEL, None)
    assert plain["model_info"] == {
        "general.architecture": "llama",
        "llama.context_length": 4096,
    }
    assert ShowResponse(**plain).capabilities == ["completion", "tools"]


def test_a_pull_of_what_is_there_looks_like_one_that_has_ended() -> None:
    first, pulled, *_, last = present_lines(MODEL)
    assert (first["status"], last["status"]) == ("pulling manifest", "success")
    assert (pulled["digest"], pulled["total"], pulled["completed"]) == (f"sha256:{'d' * 64}", 7, 7)


def test_only_what_is_pulled_has_figures() -> None:
    told = {"status": "pulling 0c9477640e30", "total": 9, "completed": 0}
    line = {"status": "pulling 0c9477640e30", "digest": "sha256:0c9477640e30", "total": 9}
    assert progress_line(told) == line
    assert progress_line({"status": "success", "total": 9, "completed": 9}) == {"status": "success"}


def test_an_error_has_a_status_a_text_that_names_the_task_and_when_to_come_again() -> None:
    failed, broken = TaskFailedError("no"), BackendAnswerError("bad")
    failed.task_id = broken.task_id = "t-1"
    assert (ollama_problem(failed).status, ollama_problem(broken).status) == (500, 502)
    assert ollama_problem(failed).body == b'{"error":"no (task t-1)"}'
    assert ollama_problem(failed).headers["X-D8-Task"] == "t-1"
    missing, pruned = ollama_problem(BackendMissingError("x")), ollama_problem(PrunedTaskError())
    assert (missing.status, pruned.status) == (404, 410)
    full = ollama_problem(QueueFullError())
    assert (full.status, full.headers["Retry-After"]) == (503, "1")
    assert b"please try again.  maximum" in bytes(full.body)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", sorted(STATUS))
def test_every_error_has_a_status_that_http_knows(code: str) -> None:
    assert HTTPStatus(ollama_problem(Refusal(code, "no")).status) >= HTTPStatus.BAD_REQUEST
