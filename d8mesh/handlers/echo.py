"""``echo``: the data comes back, so that a mesh can be tried without anything else."""

from __future__ import annotations

from d8mesh.handlers import Data, TaskContext


def echo(data: Data, context: TaskContext) -> object:
    """Return `data` as it is; it becomes ``output``, even if it holds a ``success``."""
    del context
    return {"success": True, "output": dict(data)}
