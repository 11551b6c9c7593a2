"""Frames: what every message is made of."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from d8mesh.core.protocol import frames
from d8mesh.core.protocol import messages as m


def test_all_that_travels_is_laid_out_as_a_frame() -> None:
    assert all(issubclass(kind, frames.Frame) for kind in get_args(m.Message))
    assert all(kind.__struct_config__.array_like for kind in get_args(m.Message))


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (frames.Name, "n" * 128, ""),
        (frames.Name, "n", "n" * 129),
        (frames.Text, "", "x" * 1001),
        (frames.TaskId, "0123456789abcdef-0", "0123456789abcdef"),
        (frames.Session, "0123456789abcdef", "0123456789ABCDEF"),
        (frames.Token, bytes(16), bytes(15)),
        (frames.Count, 0, -1),
        (frames.Seconds, 0.5, float("nan")),
        (frames.Window, frames.MAX_WINDOW, frames.MAX_WINDOW + 1),
        (frames.Names, ["n"], ["n"] * (frames.MAX_NAMES + 1)),
    ],
)
def test_a_field_is_within_its_bounds(form: object, good: object, bad: object) -> None:
    assert msgspec.convert(good, form) == good
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, form)
