"""The command `workers`: what each worker of the mesh can do, and why one cannot."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Final

from d8mesh.apps.capabilities import ListedWorker, models_of, reasons_of, types_of, why_lines
from d8mesh.apps.models import loaded_lines
from d8mesh.apps.orchestrators import ANSWER_S, Orchestrator, PassedOver, look
from d8mesh.apps.orchestrators import reasons_of as passed_over_for
from d8mesh.apps.status import failure, parted, requests_of, say_nobody, state_of
from d8mesh.apps.tables import lines_of
from d8mesh.config import Config
from d8mesh.edge.terminal import as_json, say, tell, width
from d8mesh.program import command_name
from d8mesh.words import tr, translated

#: Workers named where there is no language model; `workers` has all.
WORKERS_NAMED: Final = 64


def run(config: Config, options: argparse.Namespace) -> int:
    """Print the workers of the mesh; exit code 1 when no orchestrator answers."""
    strangers: list[PassedOver] = []
    found = look(config, strangers.append, answer_s=options.timeout_s or ANSWER_S)
    if not found and options.json:
        say(as_json(failure(config, strangers)))
    elif not found:
        say_nobody(config, is_any_there=bool(strangers))
    for why in passed_over_for(strangers):
        tell(why)
    if not found:
        return 1
    for orchestrator in found:
        if options.json:
            for worker in orchestrator.workers:
                say(as_json({"orchestrator": orchestrator.url, **worker}))
        else:
            _print(orchestrator, is_all=options.all)
    return 0


def say_who_is_there(workers: Sequence[ListedWorker]) -> Iterator[str]:
    """Yield a line for each live worker: what it can do, and why it has no language model."""
    live = [worker for worker in workers if worker.get("status") != "offline"]
    if not live:
        yield tr("there is no worker: start one with `{program} worker`", program=command_name())
        return
    reasons = reasons_of(live)
    yield tr("the workers that are there:")
    for worker in live[:WORKERS_NAMED]:
        worker_id = str(worker["worker_id"])
        why = reasons.get(worker_id)
        types = ", ".join(types_of(worker)) or "?"
        told = translated(why) if why else tr("it offers only {types}", types=types)
        yield "  " + tr("{id}: {what}", id=worker_id, what=told)


def _print(orchestrator: Orchestrator, *, is_all: bool) -> None:
    shown, hidden = parted(orchestrator.workers, time.time(), is_all=is_all)
    columns = ("worker", "host", "type", "state", "slots", "requests", "done", "failures",
               "models", "types")  # fmt: skip
    rows = [
        (
            str(worker["worker_id"]),
            str(worker.get("host") or worker.get("address") or ""),
            str(worker.get("worker_type", "")),
            tr(state_of(worker)),
            f"{worker.get('running', '?')}/{worker.get('slots', '?')}",
            requests_of(worker),
            str(worker.get("tasks_completed", "")),
            str(worker.get("tasks_failed", "")),
            ", ".join(models_of(worker)),
            ", ".join(types_of(worker)),
        )
        for worker in shown
    ]
    for line in lines_of([tr(name) for name in columns], rows, width=width()):
        say(line)
    if not rows and not hidden:
        say(tr("no workers: start one with `{program} worker`", program=command_name()))
    if hidden:
        say(tr("and {count} that ended longer ago (--all shows them)", count=hidden))
    for line in why_lines(reasons_of(shown), width()):
        say(line)
    for line in loaded_lines(orchestrator.models, width(), is_told=set(reasons_of(shown).values())):
        say(line)
