"""Evolution: a population that gets better over the mesh, one generation after another.

Crossover and mutation are tasks of the mesh; choosing parents and judging children are
done here. Each task carries a seed, so that a run with the same ``--seed`` is the same
run, whichever workers do it.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import random
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from d8mesh.apps.fitness import FITNESS, Genome, Problem, has_form_of
from d8mesh.apps.progress import Progress, one_line
from d8mesh.apps.results import result_folder, write_whole
from d8mesh.apps.work import INTERRUPTED, SubmitsMany, cancel_all, connected, outcomes
from d8mesh.config import Config
from d8mesh.edge.terminal import as_json, say, tell
from d8mesh.errors import ConfigError, D8Error
from d8mesh.words import tr

#: One of so many is kept as it is: the best is never lost.
ELITE_SHARE: Final = 10
#: Parents are the best of so many taken by chance.
TOURNAMENT: Final = 3
#: A cost below this is as good as none.
SOLVED: Final = 1e-9
#: A batch of such tasks takes milliseconds: after so long without its end nobody works.
BATCH_S: Final = 120.0
#: Costs that differ by more than this factor are plotted on a logarithmic scale.
WIDE: Final = 50.0
#: Seeds fit every language's integers.
MAX_SEED: Final = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionPlan:
    """What to evolve, and how."""

    problem: Problem
    population: int = 24
    generations: int = 10
    mutation_rate: float = 0.2
    seed: int = 0


@dataclass(slots=True)
class EvolutionHistory:
    """What has happened so far; the first generation is the one made by chance."""

    best_costs: list[float] = field(default_factory=list)
    mean_costs: list[float] = field(default_factory=list)
    best: Genome = field(default_factory=dict)
    tasks: int = 0
    #: tasks that failed, or gave a genome of another form: the parent went on instead
    failed_tasks: int = 0

    def add(self, ranked: Sequence[tuple[float, Genome]]) -> None:
        """Note one generation, best first."""
        self.best_costs.append(ranked[0][0])
        self.mean_costs.append(statistics.fmean(cost for cost, _ in ranked))
        self.best = ranked[0][1]


def run(config: Config, options: argparse.Namespace) -> int:
    """Evolve a population over the mesh and save a plot and the numbers; return the exit code.

    Raises:
        ConfigError: no such fitness function.
        D8Error: no orchestrator was found, nobody worked, or the results can't be written.
    """
    plan = _plan(options)
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
    history, started, code = EvolutionHistory(), time.monotonic(), 0
    title = tr("Evolution ({problem})", problem=plan.problem.name)
    try:
        with Progress(title, plan.generations) as progress:

            def advance() -> None:
                if len(history.best_costs) > 1:
                    cost = f"{history.best_costs[-1]:.6g}"
                    progress.advance(tr("best cost {cost}", cost=cost))

            evolve(client, plan, history, until, on_generation=advance, on_silence=progress.why)
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        if history.best_costs:
            save(folder, plan, history)
    _show(folder, plan, history, started=started, is_json=options.json)
    return code


def evolve(
    client: SubmitsMany,
    plan: EvolutionPlan,
    history: EvolutionHistory,
    until: float | None = None,
    *,
    on_generation: Callable[[], None] = lambda: None,
    on_silence: Callable[[str], None] = lambda reason: None,
) -> None:
    """Evolve until a genome is perfect or the generations are over, noting all in `history`.

    Args:
        until: monotonic seconds when waiting is over; None: when a batch takes `BATCH_S`.
        on_generation: called when one is complete.
        on_silence: told why nothing comes.

    Raises:
        WaitTimeoutError: `until` has come, or a batch of tasks did not end within `BATCH_S`.
    """
    chance = random.Random(plan.seed)
    first = [plan.problem.new(chance) for _ in range(plan.population)]
    ranked = _ranked(plan.problem, first)
    history.add(ranked)
    on_generation()
    breeder = _Breeder(client, plan, history, until, on_silence)
    for _ in range(plan.generations):
        if ranked[0][0] <= SOLVED:
            return
        elite = [genome for _, genome in ranked[: max(1, plan.population // ELITE_SHARE)]]
        wanted = plan.population - len(elite)
        parents = [(_chosen(ranked, chance), _chosen(ranked, chance)) for _ in range(wanted)]
        ranked = _ranked(plan.problem, [*elite, *breeder.children(parents, chance)])
        history.add(ranked)
        on_generation()


def save(folder: Path, plan: EvolutionPlan, history: EvolutionHistory) -> None:
    """Write ``evolution.json`` and the plot ``fitness.svg`` to `folder`.

    Raises:
        D8Error: they could not be written.
    """
    write_whole(folder / "evolution.json", json.dumps(_report(plan, history), indent=2) + "\n")
    write_whole(folder / "fitness.svg", plot(plan, history))


def plot(plan: EvolutionPlan, history: EvolutionHistory) -> str:
    """Return an SVG picture of the best and the mean cost of each generation."""
    pygal = _pygal()
    # As a picture shows them: pygal never ends on almost equal ones.
    best, mean = (
        [float(f"{cost:.6g}") for cost in costs]
        for costs in (history.best_costs, history.mean_costs)
    )
    lowest, highest = min(best + mean), max(best + mean)
    is_wide = lowest > 0 and highest / lowest > WIDE
    count = len(history.best_costs)
    labels = [str(i) for i in range(count)]
    chart = pygal.Line(
        js=[],  # the picture is alone: no script from elsewhere
        style=pygal.style.CleanStyle(colors=("#0b7285", "#e8590c")),
        title=f"Evolution: {plan.problem.name}, {plan.population} genomes",
        x_title="generation",
        y_title=f"cost, 0 is perfect{' (logarithmic)' if is_wide else ''}",
        logarithmic=is_wide,
        x_labels=labels,
        x_labels_major=labels[:: max(1, math.ceil(count / 10))],
        show_minor_x_labels=False,
        truncate_label=-1,
        show_dots=count <= 60,
        legend_at_bottom=True,
        no_prefix=False,
    )
    chart.add("best", best)
    chart.add("mean", mean)
    return str(chart.render(is_unicode=True))


def _pygal() -> Any:
    """Import pygal without its hook, which makes every later failed import warn."""
    import pygal
    import pygal.style

    hooks = [each for each in sys.meta_path if type(each).__name__ == "PluginImportFixer"]
    for hook in hooks:
        sys.meta_path.remove(hook)
    return pygal


class _Breeder:
    """Makes children of parents: two batches of tasks, crossover and then mutation."""

    def __init__(
        self,
        client: SubmitsMany,
        plan: EvolutionPlan,
        history: EvolutionHistory,
        until: float | None,
        on_silence: Callable[[str], None],
    ) -> None:
        self._client, self._plan, self._history = client, plan, history
        self._until, self._on_silence = until, on_silence

    def children(
        self, parents: Sequence[tuple[Genome, Genome]], chance: random.Random
    ) -> list[Genome]:
        """Return a child for each pair, by chance and by the mesh."""
        crossed = self._genomes(
            "evolution_crossover",
            [
                {"genome1": one, "genome2": two, "seed": chance.randrange(MAX_SEED)}
                for one, two in parents
            ],
            instead=[one for one, _ in parents],
        )
        rate = self._plan.mutation_rate
        return self._genomes(
            "evolution_mutation",
            [
                {"genome": genome, "mutation_rate": rate, "seed": chance.randrange(MAX_SEED)}
                for genome in crossed
            ],
            instead=crossed,
        )

    def _genomes(
        self, kind: str, datas: Sequence[dict[str, Any]], *, instead: Sequence[Genome]
    ) -> list[Genome]:
        """Return the new genome of each task, or the one of `instead` if it gave none."""
        genomes = list(instead)
        now = time.monotonic()
        until = now + BATCH_S if self._until is None else self._until
        tasks = self._client.submit_many(kind, datas, timeout=max(until - now, 0.0))
        self._history.tasks += len(tasks)
        ended = outcomes(tasks, until=until, on_silence=self._on_silence)
        try:
            for outcome in ended:
                genome = (outcome.result or {}).get("genome")
                if genome is not None and has_form_of(genome, genomes[outcome.index]):
                    genomes[outcome.index] = dict(genome)
                else:
                    self._history.failed_tasks += 1
        except (KeyboardInterrupt, D8Error):
            cancel_all(tasks)
            raise
        return genomes


def _ranked(problem: Problem, genomes: Sequence[Genome]) -> list[tuple[float, Genome]]:
    return sorted(((problem.cost(each), each) for each in genomes), key=lambda row: row[0])


def _chosen(ranked: Sequence[tuple[float, Genome]], chance: random.Random) -> Genome:
    best = min(chance.randrange(len(ranked)) for _ in range(TOURNAMENT))
    return ranked[best][1]


# --- what a person gives and gets -----------------------------------------------------


def _plan(options: argparse.Namespace) -> EvolutionPlan:
    name = options.fitness
    if name not in FITNESS:
        known = "; ".join(f"{each.name}: {each.summary}" for each in FITNESS.values())
        near = difflib.get_close_matches(name.lower(), FITNESS, n=1)
        hint = f" did you mean {near[0]}?" if near else ""
        raise ConfigError(f"--fitness {one_line(name)!r} is not known:{hint} There are {known}")
    return EvolutionPlan(
        problem=FITNESS[name],
        population=options.population,
        generations=options.generations,
        mutation_rate=options.mutation_rate,
        seed=secrets.randbelow(MAX_SEED) if options.seed is None else options.seed,
    )


def _report(plan: EvolutionPlan, history: EvolutionHistory) -> dict[str, Any]:
    return {
        "format": "d8-evolution-1",
        "fitness": plan.problem.name,
        "population": plan.population,
        "generations": len(history.best_costs) - 1,
        "mutation_rate": plan.mutation_rate,
        "seed": plan.seed,
        "best_cost": history.best_costs[-1],
        "best": history.best,
        "best_costs": history.best_costs,
        "mean_costs": history.mean_costs,
        "tasks": history.tasks,
        "failed_tasks": history.failed_tasks,
    }


def _show(
    folder: Path, plan: EvolutionPlan, history: EvolutionHistory, *, started: float, is_json: bool
) -> None:
    if not history.best_costs:
        return
    duration_s = round(time.monotonic() - started, 3)
    if is_json:
        report = _report(plan, history)
        say(as_json(report | {"folder": str(folder), "duration_s": duration_s}))
        return
    told = tr(
        "{problem}: best cost {first} -> {last} in {generations} generations, {tasks} tasks, "
        "{seconds} s (seed {seed})",
        problem=plan.problem.name,
        first=f"{history.best_costs[0]:.6g}",
        last=f"{history.best_costs[-1]:.6g}",
        generations=len(history.best_costs) - 1,
        tasks=history.tasks,
        seconds=f"{duration_s:.1f}",
        seed=plan.seed,
    )
    say(told)
    if history.failed_tasks:
        tell(tr("{count} tasks gave no genome: their parents went on", count=history.failed_tasks))
    say(tr("saved in {folder}: {files}", folder=folder, files="fitness.svg, evolution.json"))
