"""What a worker can do, as an orchestrator lists it, and why it has no language model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from d8mesh.apps.tables import wrapped
from d8mesh.words import tr, translated

#: The task type that language models do; a worker that lacks it may say why.
LLM_TYPE: Final = "agent_action"
#: Workers named that have the same reason.
NAMED: Final = 4

ListedWorker = Mapping[str, Any]


def models_of(worker: ListedWorker) -> list[str]:
    """Return the names of the models that a worker has."""
    return _listed(worker, "models")


def types_of(worker: ListedWorker) -> list[str]:
    """Return the task types that a worker offers."""
    return _listed(worker, "task_types")


def can(worker: ListedWorker, kind: str) -> bool:
    """Tell whether a live worker may be given tasks of `kind`."""
    if worker.get("status") == "offline":
        return False
    types = types_of(worker)
    # A polling worker of the older system need not say what it takes.
    return kind in types or (worker.get("dialect") == "polling" and not types)


def reasons_of(workers: Iterable[ListedWorker]) -> dict[str, str]:
    """Return worker id -> why it has no language model, of the live ones that say it."""
    return {
        str(worker["worker_id"]): str(worker["reason"])
        for worker in workers
        if worker.get("reason") and not can(worker, LLM_TYPE) and worker["status"] != "offline"
    }


def why_lines(reasons: Mapping[str, str], width: int | None, *, indent: str = "") -> Iterator[str]:
    """Yield why workers have no language model, those with one reason together."""
    workers: dict[str, list[str]] = {}
    for worker_id, why in sorted(reasons.items()):
        workers.setdefault(why, []).append(worker_id)
    for why, ids in workers.items():
        named = ", ".join(ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
        yield from wrapped(
            tr("without a language model: {ids}: {why}", ids=named, why=translated(why)),
            width,
            indent=indent,
        )


def _listed(worker: ListedWorker, key: str) -> list[str]:
    capabilities = worker.get("capabilities")
    names = capabilities.get(key) if isinstance(capabilities, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list) else []
