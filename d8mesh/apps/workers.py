"""The command `workers`: what each worker of the mesh can do, and why one cannot."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urlsplit

from d8mesh.apps.status import (
    ANSWER_S,
    Orchestrator,
    ask,
    look,
    models_of,
    parted,
    say_nobody,
    state_of,
    types_of,
)
from d8mesh.apps.tables import lines_of
from d8mesh.config import Config
from d8mesh.edge.terminal import as_json, say, tell, width
from d8mesh.program import command_name
from d8mesh.words import tr, translated

#: The task type that language models do; a worker that lacks it is asked why.
LLM_TYPE: Final = "agent_action"
#: A worker's status page on the same network answers sooner.
WHY_S: Final = 1.5
#: Workers that are asked why: they are asked side by side.
MAX_ASKED: Final = 64
ASKED_AT_ONCE: Final = 16

Worker = Mapping[str, Any]


def run(config: Config, options: argparse.Namespace) -> int:
    """Print the workers of the mesh; exit code 1 when no orchestrator answers."""
    found = look(config, tell, answer_s=options.timeout_s or ANSWER_S)
    if not found:
        say_nobody(config)
        return 1
    for orchestrator in found:
        host = urlsplit(orchestrator.url).hostname or ""
        reasons = reasons_of(orchestrator.workers, host)
        if options.json:
            for worker in orchestrator.workers:
                why = reasons.get(str(worker["worker_id"]), "")
                say(as_json({"orchestrator": orchestrator.url, **worker, "why": why}))
        else:
            _print(orchestrator, reasons, is_all=options.all)
    return 0


def can(worker: Worker, kind: str) -> bool:
    """Tell whether a live worker may be given tasks of `kind`."""
    if worker.get("status") == "offline":
        return False
    types = types_of(worker)
    # A polling worker of the older system need not say what it takes.
    return kind in types or (worker.get("dialect") == "polling" and not types)


def reasons_of(workers: Sequence[Worker], orchestrator_host: str = "") -> dict[str, str]:
    """Return worker id -> why it has no language model, of those that say it.

    Args:
        workers: as an orchestrator lists them.
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
            answers = pool.map(_asked, [url for _, url in asked[:MAX_ASKED]])
        found = zip(asked, answers)  # noqa: B905  # of the first MAX_ASKED
        reasons |= {worker_id: why for (worker_id, _), why in found if why}
    return reasons


def say_who_is_there(workers: Sequence[Worker]) -> Iterator[str]:
    """Yield a line for each live worker: what it can do, and why it has no language model."""
    live = [worker for worker in workers if worker.get("status") != "offline"]
    if not live:
        yield tr("there is no worker: start one with `{program} worker`", program=command_name())
        return
    reasons = reasons_of(live)
    yield tr("the workers that are there:")
    for worker in live[:MAX_ASKED]:
        worker_id = str(worker["worker_id"])
        why = reasons.get(worker_id)
        types = ", ".join(types_of(worker)) or "?"
        told = translated(why) if why else tr("it offers only {types}", types=types)
        yield "  " + tr("{id}: {what}", id=worker_id, what=told)


def _page_of(worker: Worker, orchestrator_host: str) -> str:
    address = str(worker["address"])
    if address.startswith("127.") and orchestrator_host:
        address = orchestrator_host
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{worker['status_port']}"


def _asked(url: str) -> str:
    try:
        body = ask(url, "/health", answer_s=WHY_S)
    except (OSError, ValueError):
        return ""
    backend = body.get("backend") if isinstance(body, dict) else None
    return str(backend.get("reason") or "") if isinstance(backend, dict) else ""


def _print(orchestrator: Orchestrator, reasons: Mapping[str, str], *, is_all: bool) -> None:
    shown, hidden = parted(orchestrator.workers, time.time(), is_all=is_all)
    columns = ("worker", "host", "type", "state", "slots", "done", "failed", "models", "types")
    rows = []
    for worker in shown:
        rows.append(
            (
                str(worker["worker_id"]),
                str(worker.get("host") or worker.get("address") or ""),
                str(worker.get("worker_type", "")),
                tr(state_of(worker)),
                f"{worker.get('running', '?')}/{worker.get('slots', '?')}",
                str(worker.get("tasks_completed", "")),
                str(worker.get("tasks_failed", "")),
                ", ".join(models_of(worker)),
                ", ".join(types_of(worker)),
            )
        )
    for line in lines_of([tr(name) for name in columns], rows, width=width()):
        say(line)
    if not rows and not hidden:
        say(tr("no workers: start one with `{program} worker`", program=command_name()))
    if hidden:
        say(tr("and {count} that ended longer ago (--all shows them)", count=hidden))
    for worker_id, why in sorted(reasons.items()):
        say(tr("{id} has no language model: {why}", id=worker_id, why=translated(why)))
