"""The task of the fault runner: echo and SHA-256, and a trace of every execution."""

from __future__ import annotations

import functools
import os
import secrets
import time
from pathlib import Path

from d8mesh import TaskContext, Worker
from d8mesh.nodes.worker.slots import Context
from tests.chaos.diary import Diary, digest

TASK_TYPE = "chaos_digest"


def run_one(
    data: dict[str, object], task_id: str, attempt: int, epoch: int = 0
) -> dict[str, object]:
    """Return the text, its digest, and a nonce that no other execution has.

    `epoch`: which start of the broker handed it out, if that is known.
    """
    diary = _diary(str(data["log"]))
    diary.note("start", id=task_id, n=attempt, epoch=epoch, call=data.get("call", ""))
    time.sleep(float(str(data["ms"])) / 1000)
    text = str(data["text"])
    result: dict[str, object] = {"text": text, "sha": digest(text), "nonce": secrets.token_hex(6)}
    if "call" in data:  # who calls is told no id
        result["id"] = task_id
    diary.note("end", id=task_id, n=attempt)
    return result


def chaos_digest(data: dict[str, object], context: TaskContext) -> object:
    """Run in a mesh worker."""
    assert isinstance(context, Context)
    epoch = int.from_bytes(context._attempt.token[:4], "big")  # see `core/protocol/tokens`
    return run_one(data, context.task_id, context.attempt, epoch)


def register(worker: Worker) -> None:
    """Offer the handler (``worker --tasks``)."""
    worker.register(TASK_TYPE, chaos_digest)


@functools.cache
def _diary(folder: str) -> Diary:
    return Diary(Path(folder) / f"runs-{os.getpid()}.jsonl")
