"""A fitness function of a person's own: ``MODULE:FUNCTION`` or ``FILE:FUNCTION``.

It is called with a genome, or with a genome and the client of the mesh, and returns the cost:
0 is perfect, more is worse. Genomes of a generation are tried at the same time, in threads.
"""

from __future__ import annotations

import inspect
import json
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from d8mesh.apps.genes import GenomeForm
from d8mesh.apps.mesh_batches import MeshBatches
from d8mesh.apps.progress import one_line
from d8mesh.apps.scores import WORST, Genome, GenomeScore, failed_score
from d8mesh.errors import ConfigError
from d8mesh.processes.task_modules import module_of

#: Functions that wait for the mesh at the same time: the mesh, not this machine, does the work.
TRIAL_THREADS: Final = 64
#: How often Ctrl-C and the end of the time are looked for.
LOOK_S: Final = 0.2

_Trial = tuple[int, GenomeScore]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFitness:
    """The contest of a person's own function."""

    name: str
    form: GenomeForm
    function: Callable[..., Any]
    #: it wants the client beside the genome
    takes_client: bool

    @property
    def identity(self) -> str:
        """Its genes and its name: what it does is not seen."""
        genes = msgspec.to_builtins(self.form)
        return json.dumps({"genes": genes, "function": self.name}, sort_keys=True)

    @property
    def keeps_scores(self) -> bool:
        """True: they are dear."""
        return True

    def new(self, chance: random.Random) -> Genome:
        """Return a genome by chance."""
        return self.form.new(chance)

    def repaired(self, genome: Genome) -> Genome:
        """Return `genome` within its bounds."""
        return self.form.repaired(genome)

    def expressed(self, genome: Genome) -> Mapping[str, object]:
        """Return what `genome` stands for: what the function gets."""
        return self.form.expressed(genome)

    def ready(self, genome: Genome) -> Mapping[str, object]:
        """Return what the function gets."""
        return self.expressed(genome)

    def try_all(
        self,
        genomes: Sequence[Genome],
        mesh: MeshBatches,
        on_score: Callable[[int, GenomeScore], None],
    ) -> None:
        """Call the function for each of `genomes`.

        Raises:
            WaitTimeoutError: the time is over.
        """
        waiting: queue.SimpleQueue[tuple[int, Genome]] = queue.SimpleQueue()
        done: queue.SimpleQueue[_Trial] = queue.SimpleQueue()
        for place in enumerate(genomes):
            waiting.put(place)
        for _ in range(min(TRIAL_THREADS, len(genomes))):
            # A daemon: a function that never returns does not keep the program.
            threading.Thread(target=self._work, args=(waiting, done, mesh), daemon=True).start()
        left = len(genomes)
        try:
            while left:
                try:
                    index, score = done.get(timeout=LOOK_S)
                except queue.Empty:
                    mesh.raise_if_late(left, len(genomes))
                    continue
                left -= 1
                on_score(index, score)
        finally:
            _empty(waiting)

    def _work(
        self,
        waiting: queue.SimpleQueue[tuple[int, Genome]],
        done: queue.SimpleQueue[_Trial],
        mesh: MeshBatches,
    ) -> None:
        while True:
            try:
                index, genome = waiting.get_nowait()
            except queue.Empty:
                return
            done.put((index, self._score(genome, mesh)))

    def _score(self, genome: Genome, mesh: MeshBatches) -> GenomeScore:
        began = time.monotonic()
        more = (mesh.client,) if self.takes_client else ()
        try:
            cost = self.function(dict(self.form.expressed(genome)), *more)
            if isinstance(cost, bool) or not isinstance(cost, int | float) or math.isnan(cost):
                raise TypeError(f"expected the cost, a number, not {cost!r:.40}")
        except Exception as error:  # whatever the function of a person raises
            return failed_score(one_line(f"{type(error).__name__}: {error}"))
        spent_s = round(time.monotonic() - began, 3)
        return GenomeScore(cost=min(max(float(cost), 0.0), WORST), spent_s=spent_s)


def _empty(waiting: queue.SimpleQueue[tuple[int, Genome]]) -> None:
    while True:
        try:
            waiting.get_nowait()
        except queue.Empty:
            return


def load_fitness(name: str, form: GenomeForm) -> OwnFitness:
    """Return the function that `name` names.

    Raises:
        ConfigError: there is none, or it takes something else.
    """
    module_name, _, function_name = name.rpartition(":")
    try:
        module = module_of(module_name)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--tasks", "--fitness", 1)) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"--fitness {name}: there is no function {function_name!r} in it")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--fitness {name}: there is no telling what it takes") from error
    for count in (2, 1):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return OwnFitness(name=name, form=form, function=function, takes_client=count == 2)
    raise ConfigError(
        f"--fitness {name}: expected a function of a genome, or of a genome and a client"
    )
