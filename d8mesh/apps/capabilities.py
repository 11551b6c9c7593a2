"""What a worker can do, as an orchestrator lists it, and why it has no language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

from d8mesh.apps.tables import wrapped
from d8mesh.words import tr, translated

#: The task type that language models do; a worker that lacks it is asked why.
LLM_TYPE: Final = "agent_action"
#: A worker's status page on the same network answers sooner.
WHY_S: Final = 1.5
#: Workers that are asked why: they are asked side by side.
MAX_ASKED: Final = 64
ASKED_AT_ONCE: Final = 16
#: Workers named that have the same reason.
NAMED: Final = 4

Worker = Mapping[str, Any]


class Asks(Protocol):
    """Returns the JSON answer of a GET; see `apps.status.ask`."""

    def __call__(self, url: str, path: str, *, answer_s: float) -> Any:
        """Ask."""


def models_of(worker: Worker) -> list[str]:
    """Return the names of the models that a worker has."""
    return _listed(worker, "models")


def types_of(worker: Worker) -> list[str]:
    """Return the task types that a worker offers."""
    return _listed(worker, "task_types")


def can(worker: Worker, kind: str) -> bool:
    """Tell whether a live worker may be given tasks of `kind`."""
    if worker.get("status") == "offline":
        return False
    types = types_of(worker)
    # A polling worker of the older system need not say what it takes.
    return kind in types or (worker.get("dialect") == "polling" and not types)


def reasons_of(workers: Sequence[Worker], ask: Asks, orchestrator_host: str = "") -> dict[str, str]:
    """Return worker id -> why it has no language model, of those that say it.

    Args:
        workers: as an orchestrator lists them.
        ask: asks a worker's status page.
        orchestrator_host: where workers are that it knows as 127.0.0.1.
    """
    reasons: dict[str, str] = {}
    asked: list[tuple[str, str]] = []
    for worker in workers:
        worker_id = str(worker["worker_id"])
        if worker.get("status") == "offline" or LLM_TYPE in types_of(worker):
            continue
        backend = worker.get("backend")
        if isinstance(backend, Mapping) and backend.get("reason"):
            reasons[worker_id] = str(backend["reason"])
        elif worker.get("reason"):
            reasons[worker_id] = str(worker["reason"])
        elif worker.get("status_port") and worker.get("address"):
            asked.append((worker_id, _page_of(worker, orchestrator_host)))
    if asked:
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            answers = pool.map(lambda row: _asked(ask, row[1]), asked[:MAX_ASKED])
        found = zip(asked, answers)  # noqa: B905  # of the first MAX_ASKED
        reasons |= {worker_id: why for (worker_id, _), why in found if why}
    return reasons


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


def _page_of(worker: Worker, orchestrator_host: str) -> str:
    address = str(worker["address"])
    if address.startswith("127.") and orchestrator_host:
        address = orchestrator_host
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{worker['status_port']}"


def _asked(ask: Asks, url: str) -> str:
    try:
        body = ask(url, "/health", answer_s=WHY_S)
    except (OSError, ValueError):
        return ""
    backend = body.get("backend") if isinstance(body, dict) else None
    return str(backend.get("reason") or "") if isinstance(backend, dict) else ""


def _listed(worker: Worker, key: str) -> list[str]:
    capabilities = worker.get("capabilities")
    names = capabilities.get(key) if isinstance(capabilities, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list) else []
