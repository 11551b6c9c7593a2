"""A genome is tried once, however often and in whatever order of its keys it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from d8mesh.apps.fitness import FITNESS, Problem
from d8mesh.apps.mesh_batches import MeshBatches
from d8mesh.apps.scores import Genome, GenomeScore, ScoreBook, failed_score, key_of
from tests.in_process import InProcess


class Counted(Problem):
    """A problem that notes what it is asked, and fails for the text "bad"."""

    tried: list[Genome] = []  # noqa: RUF012  # one test, one list

    def try_all(
        self,
        genomes: Sequence[Genome],
        mesh: MeshBatches,
        on_score: Callable[[int, GenomeScore], None],
    ) -> None:
        for index, genome in enumerate(genomes):
            self.tried.append(genome)
            bad = genome.get("a") == "bad"
            on_score(index, failed_score("no luck") if bad else GenomeScore(cost=1.0))


def tried(book: ScoreBook, *genomes: dict[str, Any]) -> list[Genome]:
    sphere = FITNESS["sphere"]
    problem = Counted(name="n", summary="", new=sphere.new, raw_cost=sphere.raw_cost)
    Counted.tried.clear()
    with InProcess({}) as mesh:
        book.try_all(problem, genomes, MeshBatches(mesh))
    return list(Counted.tried)


def test_the_same_genome_is_tried_once() -> None:
    book = ScoreBook()
    assert len(tried(book, {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 2})) == 2
    assert tried(book, {"a": 1, "b": 2}) == []
    assert book.of({"b": 2, "a": 1}).cost == 1.0
    assert tried(ScoreBook(book.all()), {"a": 1, "b": 2}) == []


def test_one_that_failed_is_tried_again_when_it_comes_again() -> None:
    book = ScoreBook()
    assert len(tried(book, {"a": "bad"})) == 1
    assert book.of({"a": "bad"}).is_failed
    assert len(tried(book, {"a": "bad"})) == 1


def test_only_what_is_told_is_kept() -> None:
    book = ScoreBook()
    tried(book, {"a": 1}, {"a": 2})
    book.keep_only([{"a": 2}])
    assert set(book.all()) == {key_of({"a": 2})}
