"""What a batch may be made with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from d8mesh.doors.batches.creation import BATCH_PRIORITY, WantedBatch, wanted_batch
from d8mesh.errors import InvalidTaskError

GOOD = {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h"}


def wanted(**changes: Any) -> WantedBatch:
    return wanted_batch(json.dumps(GOOD | changes).encode())


def test_a_plain_wish() -> None:
    found = wanted()
    assert (found.window_s, found.priority, found.metadata) == (86_400, BATCH_PRIORITY, None)
    assert found.output_stays_s == 30 * 86_400


def test_a_priority_stands_in_the_metadata() -> None:
    assert wanted(metadata={"priority": "7"}).priority == 7


def test_a_window_may_be_another_one() -> None:
    assert wanted(completion_window="90s").window_s == 90


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"input_file_id": None}, "Missing field: input_file_id"),
        ({"endpoint": "/v1/moderations"}, "endpoint: expected one of"),
        ({"completion_window": "soon"}, "completion_window: expected 24h"),
        ({"completion_window": "0h"}, "completion_window: expected 24h"),
        ({"completion_window": "999d"}, "completion_window: expected 24h"),
        ({"metadata": []}, "metadata: expected an object"),
        ({"metadata": {str(n): "" for n in range(17)}}, "at most 16"),
        ({"metadata": {"k" * 65: ""}}, "keys of 1 to 64"),
        ({"metadata": {"k": 1}}, "metadata.k: expected a text"),
        ({"metadata": {"priority": "11"}}, "metadata.priority"),
        ({"output_expires_after": {"seconds": 1}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"seconds": 3600}}, "output_expires_after.anchor"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidTaskError, match=told):
        wanted(**change)


@pytest.mark.parametrize("body", [b"", b"[]", b"{"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidTaskError, match="the body"):
        wanted_batch(body)
