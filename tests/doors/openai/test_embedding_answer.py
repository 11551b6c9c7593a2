"""Vectors, as numbers and as base64."""

from __future__ import annotations

import base64
import struct

import pytest
from openai.types import CreateEmbeddingResponse

from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.embedding_answer import embedding_body
from tests.doors.openai.said import CREATED, vectors

ROWS = ((0.1, -0.2, 0.3), (1.0, 0.0, -1.0), (0.5, 0.5, 0.5))


def test_vectors_of_several_tasks_keep_their_order() -> None:
    asked = AskedOfModels(tasks=(), model="e")
    body = embedding_body(asked, [vectors(*ROWS[:2]), vectors(ROWS[2])], CREATED)
    CreateEmbeddingResponse.model_validate(body, strict=True)
    assert body["object"] == "list"
    assert [each["index"] for each in body["data"]] == [0, 1, 2]
    assert [tuple(each["embedding"]) for each in body["data"]] == list(ROWS)
    assert {each["object"] for each in body["data"]} == {"embedding"}
    assert body["usage"] == {"prompt_tokens": 8, "total_tokens": 8}


def test_base64_is_of_float32_lowest_byte_first() -> None:
    asked = AskedOfModels(tasks=(), model="e", is_base64=True)
    (found,) = embedding_body(asked, [vectors(ROWS[0])], CREATED)["data"]
    assert struct.unpack("<3f", base64.b64decode(found["embedding"])) == pytest.approx(
        ROWS[0], abs=1e-6
    )
