"""What is known of genomes: a score for each that was tried, kept by its content.

The same genome is never tried twice: not within a generation, not in a later one, and not when
a run goes on from its file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from msgspec import Struct

from d8mesh.apps.mesh_batches import MeshBatches

Genome = dict[str, Any]

#: A cost that is no number, or larger, counts as this: JSON and plots can hold it.
WORST: Final = 1e12
#: Of an answer so much is kept, for the report.
MAX_KEPT_CHARS: Final = 600


class TriedAnswer(Struct, frozen=True, kw_only=True):
    """What an agent said to the question of this number, and what that was worth, 0 to 1."""

    number: int
    points: float = 0.0
    text: str = ""
    error: str = ""


class GenomeScore(Struct, frozen=True, kw_only=True):
    """How good a genome is: a cost of 0 is perfect."""

    cost: float
    #: parts that failed (a task, a judge, the function); they bring no points
    failures: int = 0
    #: why, of the first
    error: str = ""
    #: nothing was found out: it ranks last and is tried again should it come again
    is_failed: bool = False
    tokens: int = 0
    #: seconds of models, or of the function
    spent_s: float = 0.0
    answers: tuple[TriedAnswer, ...] = ()

    @property
    def rank(self) -> tuple[bool, float, int]:
        """What genomes are sorted by, best first: of equally good ones the cheaper."""
        return (self.is_failed, self.cost, self.tokens)


def failed_score(error: str, *, failures: int = 1) -> GenomeScore:
    """Return the score of a genome of which nothing was found out."""
    return GenomeScore(cost=WORST, failures=failures, error=error, is_failed=True)


class Contest(Protocol):
    """What genomes are bred for."""

    @property
    def name(self) -> str:
        """Its name, for people."""

    @property
    def identity(self) -> str:
        """Its content: scores of another identity are worth nothing here."""

    @property
    def keeps_scores(self) -> bool:
        """Whether scores are worth keeping when their genomes are gone."""

    def new(self, chance: random.Random, /) -> Genome:
        """Return a genome by chance."""

    def repaired(self, genome: Genome, /) -> Genome:
        """Return `genome` within its bounds."""

    def expressed(self, genome: Genome, /) -> Mapping[str, object]:
        """Return what `genome` stands for, for people."""

    def ready(self, genome: Genome, /) -> Mapping[str, object]:
        """Return what a person uses of the best."""

    def try_all(
        self,
        genomes: Sequence[Genome],
        mesh: MeshBatches,
        on_score: Callable[[int, GenomeScore], None],
        /,
    ) -> None:
        """Try all of `genomes`; give each one's index and score as it is found."""


def key_of(genome: Mapping[str, object]) -> str:
    """Return the content of `genome` as a text."""
    return json.dumps(genome, sort_keys=True, separators=(",", ":"))


class ScoreBook:
    """The scores so far."""

    def __init__(self, known: Mapping[str, GenomeScore] | None = None) -> None:
        self._by_key = dict(known or {})
        #: genomes that were tried in this run
        self.tried = 0
        #: failures in this run
        self.failures = 0
        self.last_error = ""

    def all(self) -> dict[str, GenomeScore]:
        """Return all by content."""
        return dict(self._by_key)

    def keep_only(self, genomes: Iterable[Mapping[str, object]]) -> None:
        """Forget all but the scores of `genomes`."""
        keys = set(map(key_of, genomes))
        self._by_key = {key: score for key, score in self._by_key.items() if key in keys}

    def of(self, genome: Mapping[str, object]) -> GenomeScore:
        """Return the score of a genome that was tried."""
        return self._by_key[key_of(genome)]

    def try_all(
        self,
        contest: Contest,
        genomes: Sequence[Genome],
        mesh: MeshBatches,
        on_score: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Try those of `genomes` of which nothing is known, each once, all at the same time.

        Args:
            on_score: told how many of how many are done.
        """
        wanted = {key_of(genome): genome for genome in genomes}
        keys = [key for key in wanted if key not in self._by_key or self._by_key[key].is_failed]
        done = 0

        def keep(index: int, score: GenomeScore) -> None:
            nonlocal done
            done += 1
            self.tried += 1
            self._by_key[keys[index]] = score
            self.failures += score.failures
            self.last_error = score.error or self.last_error
            on_score(done, len(keys))

        if keys:
            contest.try_all([wanted[key] for key in keys], mesh, keep)
