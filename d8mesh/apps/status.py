"""What runs in the mesh now: every orchestrator that answers, its workers, its queue."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from d8mesh.apps.capabilities import ListedWorker, models_of, reasons_of, why_lines
from d8mesh.apps.models import loaded_lines
from d8mesh.apps.orchestrators import ANSWER_S, Orchestrator, PassedOver, look
from d8mesh.apps.orchestrators import reasons_of as passed_over_for
from d8mesh.apps.tables import cut, lines_of, wrapped
from d8mesh.config import Config
from d8mesh.edge.terminal import as_json, say, width
from d8mesh.errors import BrokerUnavailableError
from d8mesh.program import command_name
from d8mesh.words import escaped, tr, translated

#: A worker that ended is listed for so long: enough to see which one it was.
ENDED_SHOWN_S: Final = 600.0
#: Models and task types named of one worker; `workers` has all.
NAMED: Final = 4


def run(config: Config, options: argparse.Namespace) -> int:
    """Print the state of the mesh; exit code 1 when no healthy orchestrator answers."""
    strangers: list[PassedOver] = []
    answer_s = options.timeout_s or ANSWER_S
    found = look(config, strangers.append, answer_s=answer_s)
    is_healthy = any(each.health.get("status") == "healthy" for each in found)
    if options.json:
        told = {"mesh": config.mesh, "orchestrators": [asdict(each) for each in found]}
        say(as_json(told if found else told | failure(config, strangers)))
        return 0 if is_healthy else 1
    if not found:
        say_nobody(config, is_any_there=bool(strangers))
    for each in found:
        for line in lines(each, time.time(), is_all=options.all):
            say(line)
    for why in passed_over_for(strangers):
        say(why)
    return 0 if is_healthy else 1


def failure(config: Config, strangers: Sequence[PassedOver]) -> dict[str, object]:
    """Return what the JSON says where no orchestrator of the mesh could be asked.

    The code is that of the first who is there after all.
    """
    nobody = BrokerUnavailableError.code
    text = tr("No orchestrator of mesh {mesh} answers.", mesh=config.mesh)
    code = next((each.code for each in strangers if each.code != nobody), nobody)
    return {
        "error": "; ".join(passed_over_for(strangers)) or text,
        "code": code,
    }


def say_nobody(config: Config, *, is_any_there: bool = False) -> None:
    """Say that no orchestrator answers, and what to do.

    Args:
        is_any_there: some do, and why they cannot be asked is said next.
    """
    if is_any_there:
        say(tr("No orchestrator of mesh {mesh} can be asked:", mesh=config.mesh))
        return
    say(tr("No orchestrator of mesh {mesh} answers.", mesh=config.mesh))
    program = command_name()
    say(tr("Start one with `{program} orchestrator`, or set ORCHESTRATOR_URL.", program=program))


def lines(each: Orchestrator, now: float, *, is_all: bool = False) -> Iterator[str]:
    """Yield what there is to say of one orchestrator at `now`, in Unix seconds."""
    health = each.health
    state = tr(str(health.get("status")))
    why = f" ({escaped(translated(str(health['reason'])))})" if health.get("reason") else ""
    at = {"id": health.get("broker_id", "?"), "url": each.url, "state": state}
    columns = width()
    yield from wrapped(tr("{id} at {url}: {state}", **at) + why, columns)
    yield from wrapped(counts_text(each.stats), columns, indent="  ")
    if health.get("keys_waiting"):
        told = tr(
            "{count} wait to be let in: run `{program} join list` on the orchestrator's machine",
            count=health["keys_waiting"],
            program=command_name(),
        )
        yield from wrapped(told, columns, indent="  ")
    if each.problem:
        yield "  " + tr("error: {why}", why=translated(each.problem))
    shown, hidden = parted(each.workers, now, is_all=is_all)
    for line in lines_of(*workers_table(shown), width=columns, indent="  ") if shown else ():
        yield line if columns is None else cut(line, columns)
    reasons = reasons_of(shown)
    is_told = set(reasons.values())
    for line in loaded_lines(each.models, columns, indent="  ", is_told=is_told):
        yield line if columns is None else cut(line, columns)
    if not shown and not hidden:
        yield "  " + tr("no workers: start one with `{program} worker`", program=command_name())
    if hidden:
        yield "  " + tr("and {count} that ended longer ago (--all shows them)", count=hidden)
    yield from why_lines(reasons, columns, indent="  ")


def counts(stats: Mapping[str, Any]) -> dict[str, int]:
    """Return pending, assigned, completed, failed and cancelled, each task counted once."""
    tasks = stats.get("tasks") or {}
    known = {
        key: int(tasks.get(key) or 0) for key in ("pending", "assigned", "completed", "cancelled")
    }
    # An orchestrator may count cancelled tasks among the failed ones: the total tells.
    total = int(tasks.get("total") or 0)
    failed = int(tasks.get("failed") or 0)
    rest = total - sum(known.values())
    known["failed"] = rest if known["cancelled"] and 0 <= rest <= failed else failed
    return {key: known[key] for key in ("pending", "assigned", "completed", "failed", "cancelled")}


def counts_text(stats: Mapping[str, Any]) -> str:
    """Return the counts of tasks in words."""
    if not stats.get("tasks"):
        return tr("tasks: unknown")
    return tr(
        "tasks: {pending} pending, {assigned} assigned, {completed} completed, "
        "{failed} failed, {cancelled} cancelled",
        **counts(stats),
    )


def parted(
    workers: Sequence[dict[str, Any]], now: float, *, is_all: bool = False
) -> tuple[list[dict[str, Any]], int]:
    """Return the workers to list, by id, and how many ended too long before `now` for that."""
    shown = [worker for worker in workers if is_all or not _is_long_gone(worker, now)]
    return sorted(shown, key=lambda each: str(each["worker_id"])), len(workers) - len(shown)


def _is_long_gone(worker: ListedWorker, now: float) -> bool:
    at = worker.get("last_heartbeat")
    if worker.get("status") != "offline" or not isinstance(at, (int, float)):
        return False
    return now - at > ENDED_SHOWN_S


def workers_table(workers: Sequence[ListedWorker]) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, and a row for each worker."""
    names = ("worker", "type", "state", "slots", "requests", "done", "failures", "models")
    rows = [
        [
            str(worker["worker_id"]),
            str(worker.get("worker_type", "")),
            tr(state_of(worker)),
            f"{worker.get('running', '?')}/{worker.get('slots', '?')}",
            requests_of(worker),
            str(worker.get("tasks_completed", "")),
            str(worker.get("tasks_failed", "")),
            ", ".join(models_of(worker)[:NAMED]) or "-",
        ]
        for worker in workers
    ]
    return [tr(name) for name in names], rows


def requests_of(worker: ListedWorker) -> str:
    """Return how many requests the worker's LLM services answer now, beside its slots."""
    return str(worker.get("placed") or "-")


def state_of(worker: ListedWorker) -> str:
    """Return online, busy or offline."""
    return str(worker.get("status", "?"))
