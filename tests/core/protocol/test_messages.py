"""Messages: one verb each, frozen, and every direction knows its own."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from d8mesh.core.protocol import messages as m


def test_verbs_are_unique() -> None:
    kinds = set(get_args(m.ToBroker)) | set(get_args(m.ToWorker)) | set(get_args(m.ToClient))
    tags = [kind.__struct_config__.tag for kind in kinds]
    assert len(set(tags)) == len(tags) == 33


def test_messages_are_frozen() -> None:
    with pytest.raises(AttributeError):
        m.Beat(1).epoch = 2  # type: ignore[misc]


def test_the_union_is_the_sum_of_the_directions() -> None:
    assert set(get_args(m.Message)) == {
        *get_args(m.ToBroker), *get_args(m.ToWorker), *get_args(m.ToClient),
    }  # fmt: skip
    assert all(issubclass(kind, msgspec.Struct) for kind in get_args(m.Message))
