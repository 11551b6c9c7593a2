"""What is said of the calls of files and batches is what they read."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

from d8mesh.doors.batches.creation import WantedBatch
from d8mesh.doors.batches.described import BatchBody, BatchEndpoint
from d8mesh.doors.batches.lines import ENDPOINTS


def test_a_batch_is_wished_for_at_the_endpoints_that_there_are() -> None:
    assert get_args(BatchEndpoint) == ENDPOINTS


def test_the_fields_that_are_said_are_those_that_are_read() -> None:
    made = {each.name for each in fields(WantedBatch)}
    named = {"window": "completion_window", "output_stays_s": "output_expires_after"}
    told_elsewhere = {"window_s", "priority"}  # of the window, of the metadata
    read = {named.get(name, name) for name in made - told_elsewhere}
    assert set(BatchBody.__struct_fields__) == read
