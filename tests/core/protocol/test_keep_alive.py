"""How long a model is kept: seconds, or a duration as Ollama reads it."""

from __future__ import annotations

import math

import pytest

from d8mesh.core.protocol.keep_alive import keep_alive_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        (-1, math.inf),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("100ms", 0.1),
        ("-1s", math.inf),
        ("-0s", 0.0),
        ("0", 0.0),
    ],
)
def test_a_value_says_so_many_seconds(value: object, seconds: float) -> None:
    assert keep_alive_s(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["10", "-1", "", "m", "5 m", "5m ", "x", True, None, [], math.nan, "1s" * 100]
)
def test_another_value_says_none(value: object) -> None:
    assert keep_alive_s(value) is None
