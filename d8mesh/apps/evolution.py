"""Evolution: populations that get better over the mesh, one generation after another.

Crossover, mutation and the questions to agents are tasks of the mesh; choosing parents is done
here. Whatever was found is on disk: an interrupted run keeps it, and a run with the same
``--output`` goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from d8mesh.apps.breeding import Breeder
from d8mesh.apps.evolution_file import (
    BEST_FILE,
    EVOLUTION_FILE,
    EvolutionHistory,
    load_history,
    record_of,
    save_record,
    told_of,
)
from d8mesh.apps.evolution_plan import plan_of
from d8mesh.apps.evolution_plot import PLOT_FILE, plot
from d8mesh.apps.evolution_report import REPORT_FILE, page_of
from d8mesh.apps.islands import (
    SOLVED,
    EvolutionPlan,
    Population,
    first_populations,
    is_stale,
    is_time_to_migrate,
    migrated,
    ranked,
)
from d8mesh.apps.mesh_batches import MeshBatches
from d8mesh.apps.progress import Progress, one_line
from d8mesh.apps.results import result_folder, write_whole
from d8mesh.apps.work import INTERRUPTED, SubmitsMany, connected
from d8mesh.config import Config
from d8mesh.edge.terminal import as_json, say, tell
from d8mesh.errors import D8Error, WaitTimeoutError
from d8mesh.words import tr, translated

#: What was found is written at most once in so many seconds, and at the end, ...
SAVE_S: Final = 1.0
#: ... and not before so many times the time that it took: a large run is not all writing.
SAVE_REST: Final = 20
NOTHING_TRIED: Final = 1
EVOLUTION_FILES: Final = (REPORT_FILE, PLOT_FILE, EVOLUTION_FILE, BEST_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionEvents:
    """Whom a run tells what."""

    #: a generation is complete
    on_generation: Callable[[], None] = lambda: None
    #: so many genomes of the generation are tried, of so many
    on_score: Callable[[int, int], None] = lambda done, total: None
    #: why nothing comes
    on_silence: Callable[[str], None] = lambda reason: None


def run(config: Config, options: argparse.Namespace) -> int:
    """Evolve populations over the mesh and save what was found; return the exit code.

    Raises:
        ConfigError: no such fitness function, or a file is not what it is to be.
        D8Error: no orchestrator was found, nobody worked, all failed, or the results can't be
            written.
    """
    plan = plan_of(options)
    with connected(config, options.timeout_s) as (client, until):
        return run_with(client, plan, config=config, options=options, until=until)


def run_with(
    client: SubmitsMany,
    plan: EvolutionPlan,
    *,
    config: Config,
    options: argparse.Namespace,
    until: float | None = None,
) -> int:
    """Do what `run` does with a client that is there; waiting is over at `until`."""
    folder = result_folder(options.output, Path(config.data_dir) / "evolution")
    history, started, code = load_history(folder, plan), time.monotonic(), 0
    over_at = None if options.time_limit_s is None else started + options.time_limit_s
    ends = [each for each in (until, over_at) if each is not None]
    title = tr("Evolution ({problem})", problem=plan.problem.name)
    with Progress(title, max(plan.generations - history.generations, 0)) as progress:
        if history.generations:
            progress.say(tr("goes on after generation {count}", count=history.generations))
        events = _events(folder, plan, history, progress)
        try:
            evolve(client, plan, history, min(ends, default=None), events)
        except KeyboardInterrupt:
            history.stopped, code = "interrupted", INTERRUPTED
        except WaitTimeoutError:
            if over_at is None or time.monotonic() < over_at:
                raise
            history.stopped = "time"
        finally:
            save(folder, plan, history, lang=config.lang or "en")
    _show(folder, plan, history, started=started, is_json=options.json)
    return code if history.best_costs or code else NOTHING_TRIED


def _events(
    folder: Path, plan: EvolutionPlan, history: EvolutionHistory, progress: Progress
) -> EvolutionEvents:
    """Return who shows how far the run is, and keeps now and then what is there."""
    due_at = 0.0

    def keep() -> None:
        nonlocal due_at
        began = time.monotonic()
        if began >= due_at:
            save_record(folder, plan, history)
            took_s = time.monotonic() - began
            due_at = began + max(SAVE_S, SAVE_REST * took_s)

    def advance() -> None:
        keep()
        if history.generations:
            progress.advance(_told_costs(history))

    def count(done: int, total: int) -> None:
        if plan.problem.keeps_scores:
            keep()
            generation = len(history.best_costs)
            told = {"number": generation, "done": done, "total": total}
            progress.note(tr("generation {number}: {done} of {total} genomes tried", **told))

    return EvolutionEvents(on_generation=advance, on_score=count, on_silence=progress.why)


def evolve(
    client: SubmitsMany,
    plan: EvolutionPlan,
    history: EvolutionHistory,
    until: float | None = None,
    events: EvolutionEvents | None = None,
) -> None:
    """Evolve until there is a reason to stop, noting all in `history`, and go on from what it has.

    Args:
        until: monotonic seconds when waiting is over; None waits as long as somebody works.

    Raises:
        WaitTimeoutError: `until` has come, or nobody can run the tasks.
        D8Error: all genomes of a generation failed.
    """
    told = events or EvolutionEvents()
    mesh = MeshBatches(client, until=until, on_silence=told.on_silence)
    breeder = Breeder(plan, mesh)
    tasks, failed_tasks = history.tasks, history.failed_tasks

    def settle(populations: list[Population]) -> None:
        try:
            _try_all(plan, populations, history, mesh, told)
        finally:
            history.tasks = tasks + mesh.tasks
            history.failed_tasks = failed_tasks + breeder.barren_tasks
        history.add([ranked(each, history.book) for each in populations])
        if not plan.problem.keeps_scores:
            history.book.keep_only(genome for each in populations for genome in each)
        told.on_generation()

    if not history.populations:
        settle(first_populations(plan))
    while not (reason := _reason_to_stop(plan, history)):
        generation = history.generations + 1
        islands = history.populations
        if is_time_to_migrate(plan, history.generations):
            islands = migrated(islands, history.book)
        try:
            bred = breeder.next_generation(islands, generation)
        finally:
            history.tasks = tasks + mesh.tasks
            history.failed_tasks = failed_tasks + breeder.barren_tasks
        settle(bred)
    history.stopped = reason


def _try_all(
    plan: EvolutionPlan,
    populations: list[Population],
    history: EvolutionHistory,
    mesh: MeshBatches,
    events: EvolutionEvents,
) -> None:
    genomes = [genome for each in populations for genome in each]
    history.book.try_all(plan.problem, genomes, mesh, events.on_score)
    scores = [history.book.of(genome) for genome in genomes]
    if all(score.is_failed for score in scores):
        why = scores[0].error
        raise D8Error(f"all {len(scores)} genomes of the generation failed: {why}")


def _reason_to_stop(plan: EvolutionPlan, history: EvolutionHistory) -> str:
    if history.best_costs[-1] <= SOLVED:
        return "solved"
    if history.generations >= plan.generations:
        return "generations"
    return "patience" if is_stale(history.best_costs, plan.patience) else ""


# --- what a person gets ---------------------------------------------------------------


def save(folder: Path, plan: EvolutionPlan, history: EvolutionHistory, *, lang: str) -> None:
    """Write the run to `folder`, and once there is a generation the best, the plot, the report.

    Raises:
        D8Error: they could not be written.
    """
    save_record(folder, plan, history)
    if not history.best_costs:
        return
    best = plan.problem.ready(history.best)
    write_whole(folder / BEST_FILE, json.dumps(best, indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / PLOT_FILE, plot(plan, history))
    report = page_of(plan, history, summary=_summary(plan, history), lang=lang)
    write_whole(folder / REPORT_FILE, report)


def _told_costs(history: EvolutionHistory) -> str:
    told = tr("best cost {cost}", cost=f"{history.best_costs[-1]:.6g}")
    if len(islands := history.island_costs[-1]) > 1:
        costs = ", ".join(f"{cost:.4g}" for cost in islands)
        told += f" ({tr('islands: {costs}', costs=costs)})"
    return told


def _summary(plan: EvolutionPlan, history: EvolutionHistory) -> str:
    return tr(
        "{problem}: best cost {first} -> {last} in {generations} generations, {tasks} tasks "
        "(seed {seed})",
        problem=plan.problem.name,
        first=f"{history.best_costs[0]:.6g}",
        last=f"{history.best_costs[-1]:.6g}",
        generations=history.generations,
        tasks=history.tasks,
        seed=plan.seed,
    )


def _show(
    folder: Path, plan: EvolutionPlan, history: EvolutionHistory, *, started: float, is_json: bool
) -> None:
    duration_s = round(time.monotonic() - started, 3)
    if is_json:
        told = told_of(record_of(plan, history))
        say(as_json(told | {"folder": str(folder), "duration_s": duration_s}))
        return
    if history.best_costs:
        say(_summary(plan, history) + f", {duration_s:.1f} s")
        say(_STOPPED[history.stopped]())
    if history.failed_tasks:
        tell(tr("{count} tasks gave no genome: their parents went on", count=history.failed_tasks))
    scores = history.book.all().values()
    if failures := sum(score.failures for score in scores):
        why = translated(one_line(next(score.error for score in scores if score.error)))
        tell(
            tr(
                "{count} failures, which bring no points; one of them: {why}",
                count=failures,
                why=why,
            )
        )
    files = ", ".join(EVOLUTION_FILES) if history.best_costs else EVOLUTION_FILE
    say(tr("saved in {folder}: {files}", folder=folder, files=files))
    if history.stopped in ("interrupted", "time"):
        say(tr("to go on: the same command with --output {folder}", folder=folder))


_STOPPED: Final[dict[str, Callable[[], str]]] = {
    "solved": lambda: tr("ended: the best is perfect"),
    "generations": lambda: tr("ended: all generations are done"),
    "patience": lambda: tr("ended: nothing better for as long as --patience says"),
    "time": lambda: tr("ended: the time of --time-limit is over"),
    "interrupted": lambda: tr("ended: interrupted"),
}
