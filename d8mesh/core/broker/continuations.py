"""What the brain goes on with later, as data: when its time has come."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct


class Retry(Struct, frozen=True, gc=False):
    """The pause of a task is over."""

    task_id: str


class PassDeadline(Struct, frozen=True, gc=False):
    """The tasks of a batch that are not finished are too late."""

    session: str
    first: int


class SayOwed(Struct, frozen=True, gc=False):
    """No hand-out came with which a worker's results could be acknowledged."""

    worker_id: str


class CatchUp(Struct, frozen=True, gc=False):
    """Who could not be sent partial output is sent what is kept."""


Timer: TypeAlias = Retry | PassDeadline | SayOwed | CatchUp
