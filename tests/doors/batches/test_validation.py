"""A whole batch file before it is asked: everything that is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from d8mesh.doors.batches import validation
from d8mesh.doors.batches.validation import Looked, look_at

CHAT = "/v1/chat/completions"


def row(custom_id: str, endpoint: str = CHAT, **body: Any) -> str:
    line = {
        "custom_id": custom_id,
        "method": "POST",
        "url": endpoint,
        "body": {"model": "m"} | body,
    }
    return json.dumps(line)


def looked(tmp_path: Path, *rows: str, endpoint: str = CHAT) -> Looked:
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(rows), "utf-8")
    return look_at(file, endpoint)


def codes(found: Looked) -> list[tuple[object, object]]:
    return [(fault["code"], fault["line"]) for fault in found.faults]


def test_a_good_file_is_counted(tmp_path: Path) -> None:
    found = looked(tmp_path, row("a"), "", row("b"))
    assert (found.count, found.last, found.model, found.faults) == (2, 3, "m", [])


def test_lines_may_name_several_models(tmp_path: Path) -> None:
    found = looked(tmp_path, row("a"), row("b", model="other"))
    assert (found.model, found.faults) == ("", [])


def test_every_wrong_line_is_told_with_its_number(tmp_path: Path) -> None:
    found = looked(tmp_path, row("a"), "{", row("a"), row("b", endpoint="/v1/embeddings"))
    assert codes(found) == [
        ("invalid_json_line", 2),
        ("duplicate_custom_id", 3),
        ("url_mismatch", 4),
    ]


def test_an_empty_file_is_a_fault(tmp_path: Path) -> None:
    assert codes(looked(tmp_path, "", "  ")) == [("empty_file", None)]


def test_too_many_requests_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MAX_BATCH_LINES", 2)
    assert codes(looked(tmp_path, row("a"), row("b"), row("c"))) == [("too_many_tasks", None)]


def test_too_many_texts_to_embed_are_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "MAX_EMBEDDED", 2)
    endpoint = "/v1/embeddings"
    rows = row("a", endpoint, input=["x", "y"]), row("b", endpoint, input="z")
    assert codes(looked(tmp_path, *rows, endpoint=endpoint)) == [("too_many_embedding_inputs", 2)]


def test_of_many_faults_the_first_ones_are_told(tmp_path: Path) -> None:
    found = looked(tmp_path, *["{"] * 300)
    assert (len(found.faults), found.count) == (100, 300)
