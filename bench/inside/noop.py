"""The task of those that import it by name in their workers: pickled by reference, not by value."""

from __future__ import annotations


def echo(payload: bytes) -> bytes:
    """Do nothing."""
    return payload
