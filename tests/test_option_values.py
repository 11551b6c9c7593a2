"""Values of options: what is read, and what is refused in words that say what is expected."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from d8mesh import option_values as values
from d8mesh.core.protocol.access_tokens import RateLimit


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (values.count(1, 10), "10", 10),
        (values.number(0.5, 2), "1e0", 1.0),
        (values.names, " a, b,", ["a", "b"]),
        (values.model_name, "qwen3:4b", "qwen3:4b"),
        (values.token_name, "open-webui", "open-webui"),
        (values.limit, "60/min", RateLimit(60, 60)),
        (values.member_name, "k3fq-2mzd-7xwa-pq4e", "k3fq-2mzd-7xwa-pq4e"),
    ],
)
def test_what_is_expected_is_read(read: Callable[[str], object], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (values.count(1, 10), "11", "a whole number, 1 to 10"),
        (values.count(1, 10), "+1", "a whole number, 1 to 10"),
        (values.number(0.5, 2), "nan", "a number, 0.5 to 2"),
        (values.number(0.5, 2), "1_0", "a number, 0.5 to 2"),
        (values.names, " , ", "names with commas between"),
        (values.model_name, "../x", "a model name"),
        (values.token_name, "a b", "a name of 1 to 64 letters"),
        (values.limit, "60", "60/min or 1000/h"),
        (values.member_name, "", "a fingerprint or a name"),
        (values.member_name, " ", "a fingerprint or a name"),
        (values.member_name, "x" * (values.MAX_WHO_CHARS + 1), "1 to"),
    ],
)
def test_all_else_is_refused(read: Callable[[str], object], text: str, expected: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=expected):
        read(text)
