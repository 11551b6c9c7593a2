"""What a run of Evolution leaves, and goes on from: populations, scores, costs."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from d8mesh.apps.islands import EvolutionPlan, Population
from d8mesh.apps.results import write_whole
from d8mesh.apps.scores import WORST, Genome, GenomeScore, ScoreBook, key_of
from d8mesh.errors import ConfigError, D8Error

EVOLUTION_FILE: Final = "evolution.json"
BEST_FILE: Final = "best.json"
EVOLUTION_FORMAT: Final = "d8-evolution-2"
#: Tens of thousands of agents with all their answers.
MAX_EVOLUTION_BYTES: Final = 1_000_000_000
#: Settings that a run must have in common with the one that it goes on from.
_SAME: Final = (
    "fitness",
    "contest",
    "population",
    "islands",
    "migrate_every",
    "mutation_rate",
    "seed",
)


@dataclass(slots=True)
class EvolutionHistory:
    """What has happened so far; the first generation is the one made by chance."""

    best_costs: list[float] = field(default_factory=list)
    mean_costs: list[float] = field(default_factory=list)
    #: the best of each island, generation by generation
    island_costs: list[list[float]] = field(default_factory=list)
    #: of the newest generation, best first
    populations: list[Population] = field(default_factory=list)
    best: Genome = field(default_factory=dict)
    book: ScoreBook = field(default_factory=ScoreBook)
    tasks: int = 0
    #: tasks that failed, or gave a genome of another form: the parent went on instead
    failed_tasks: int = 0
    #: why it ended
    stopped: str = ""

    @property
    def generations(self) -> int:
        """Generations bred: the first is made by chance."""
        return max(len(self.best_costs) - 1, 0)

    @property
    def best_score(self) -> GenomeScore:
        """The score of the best."""
        return self.book.of(self.best)

    def add(self, populations: Sequence[Population]) -> None:
        """Note one generation of islands, each ranked; all of them were tried."""
        scores = [[self.book.of(genome) for genome in each] for each in populations]
        self.populations = [list(each) for each in populations]
        self.island_costs.append([each[0].cost for each in scores])
        found = [score.cost for each in scores for score in each if not score.is_failed]
        self.mean_costs.append(statistics.fmean(found) if found else WORST)
        self.best = min((each[0] for each in populations), key=lambda one: self.book.of(one).rank)
        self.best_costs.append(self.best_score.cost)


class EvolutionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    format: Literal["d8-evolution-2"] = "d8-evolution-2"
    fitness: str
    #: a fingerprint of genes, questions and what else makes scores comparable
    contest: str
    population: int
    islands: int
    migrate_every: int
    mutation_rate: float
    seed: int
    generations: int
    stopped: str
    best_cost: float | None
    best: dict[str, Any]
    best_costs: list[float]
    mean_costs: list[float]
    island_costs: list[list[float]]
    tasks: int
    failed_tasks: int
    failures: int
    populations: list[Population]
    scores: dict[str, GenomeScore]


def record_of(plan: EvolutionPlan, history: EvolutionHistory) -> EvolutionRecord:
    """Return what is to be kept of a run."""
    best = history.best
    return EvolutionRecord(
        fitness=plan.problem.name,
        contest=_fingerprint(plan),
        population=plan.population,
        islands=plan.islands,
        migrate_every=plan.migrate_every,
        mutation_rate=plan.mutation_rate,
        seed=plan.seed,
        generations=history.generations,
        stopped=history.stopped,
        best_cost=history.best_costs[-1] if history.best_costs else None,
        best=dict(plan.problem.expressed(best)) if best else {},
        best_costs=history.best_costs,
        mean_costs=history.mean_costs,
        island_costs=history.island_costs,
        tasks=history.tasks,
        failed_tasks=history.failed_tasks,
        failures=sum(score.failures for score in history.book.all().values()),
        populations=history.populations,
        scores=history.book.all(),
    )


def told_of(record: EvolutionRecord) -> dict[str, Any]:
    """Return what programs are told of a run: all but the populations."""
    told: dict[str, Any] = msgspec.to_builtins(record)
    return {name: value for name, value in told.items() if name not in ("populations", "scores")}


def save_record(folder: Path, plan: EvolutionPlan, history: EvolutionHistory) -> None:
    """Write the file of a run to `folder`.

    Raises:
        D8Error: it could not be written.
    """
    content = msgspec.json.encode(record_of(plan, history))
    write_whole(folder / EVOLUTION_FILE, msgspec.json.format(content, indent=1).decode() + "\n")


def seed_in(folder: Path | None) -> int | None:
    """Return the seed of the run that `folder` holds; None if it holds none."""
    record = None if folder is None else _read(folder / EVOLUTION_FILE)
    return None if record is None else record.seed


def load_history(folder: Path, plan: EvolutionPlan) -> EvolutionHistory:
    """Return what an earlier run left in `folder`: nothing if there was none.

    Raises:
        ConfigError: that was a run of other settings.
        D8Error: its file can't be read, or is another's.
    """
    record = _read(folder / EVOLUTION_FILE)
    if record is None:
        return EvolutionHistory()
    mine = record_of(plan, EvolutionHistory())
    for name in _SAME:
        theirs, wanted = getattr(record, name), getattr(mine, name)
        if theirs != wanted:
            what = f"{name} ({theirs}, not {wanted})"
            if name == "contest":
                what = "genes, questions or judge"
            raise ConfigError(
                f"{folder / EVOLUTION_FILE} is a run with other {what}: "
                "choose another --output, or the same settings"
            )
    history = EvolutionHistory(
        best_costs=record.best_costs,
        mean_costs=record.mean_costs,
        island_costs=record.island_costs,
        populations=record.populations,
        book=ScoreBook(record.scores),
        tasks=record.tasks,
        failed_tasks=record.failed_tasks,
    )
    if history.populations:
        try:
            _check_scores(history.populations, record.scores)
            firsts = [each[0] for each in history.populations]
            history.best = min(firsts, key=lambda one: history.book.of(one).rank)
        except (KeyError, IndexError) as error:
            raise D8Error(
                f"{folder / EVOLUTION_FILE} is not whole: choose another --output"
            ) from error
    return history


def _check_scores(populations: Sequence[Population], scores: Mapping[str, GenomeScore]) -> None:
    for population in populations:
        for genome in population:
            scores[key_of(genome)]


def _read(file: Path) -> EvolutionRecord | None:
    try:
        if not file.exists():
            return None
        if file.stat().st_size > MAX_EVOLUTION_BYTES:
            raise D8Error(f"{file} is too large to be a result: choose another --output")
        return msgspec.json.decode(file.read_bytes(), type=EvolutionRecord)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise D8Error(
            f"{file} is not a result of Evolution ({error}): choose another --output"
        ) from error


def _fingerprint(plan: EvolutionPlan) -> str:
    return hashlib.sha256(plan.problem.identity.encode()).hexdigest()[:16]
