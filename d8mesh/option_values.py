"""How the value of an option is read: what `argparse` takes as a type."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

from d8mesh.config import is_model_name
from d8mesh.core.protocol.access_tokens import MAX_LIMIT, RateLimit, is_token_name, limit_of

#: Characters of a name or fingerprint that is asked for: a message has no longer one.
MAX_WHO_CHARS: Final = 128


def names(text: str) -> list[str]:
    """Return the names with commas between."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"expected names with commas between, not {text!r}")
    return found


def token_name(text: str) -> str:
    """Return an access token's name."""
    if not is_token_name(text):
        raise argparse.ArgumentTypeError(
            f"expected a name of 1 to 64 letters, digits and . _ @ -, not {text[:80]!r}"
        )
    return text


def member_name(text: str) -> str:
    """Return who is meant: a fingerprint, worker id, host or name."""
    if not text.strip() or len(text) > MAX_WHO_CHARS:
        raise argparse.ArgumentTypeError(
            f"expected a fingerprint or a name, 1 to {MAX_WHO_CHARS} characters, not {text[:80]!r}"
        )
    return text


def limit(text: str) -> RateLimit:
    """Return a limit of requests."""
    try:
        return limit_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected requests in a minute or an hour, 60/min or 1000/h, at most {MAX_LIMIT}, not "
            f"{text[:80]!r}"
        ) from None


def model_name(text: str) -> str:
    """Return a model's name."""
    if not is_model_name(text):
        raise argparse.ArgumentTypeError(f"expected a model name such as qwen3:4b, not {text!r}")
    return text


def count(low: int, high: int) -> Callable[[str], int]:
    """Return what reads a whole number within bounds."""

    def parse(text: str) -> int:
        with_bounds = f"expected a whole number, {low} to {high}, not {text!r}"
        if not text.isascii() or not text.isdigit() or not low <= int(text[:18]) <= high:
            raise argparse.ArgumentTypeError(with_bounds)
        return int(text)

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """Return what reads a number within bounds."""

    def parse(text: str) -> float:
        try:
            value = float(text if text.isascii() and "_" not in text else "nan")
        except ValueError:
            value = float("nan")
        if not low <= value <= high:  # also false for NaN
            with_bounds = f"expected a number, {low:.10g} to {high:.10g}, not {text!r}"
            raise argparse.ArgumentTypeError(with_bounds)
        return value

    return parse
