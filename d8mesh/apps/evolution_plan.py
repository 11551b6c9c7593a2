"""What a person wants of Evolution, from the options of the command."""

from __future__ import annotations

import argparse
import difflib
import secrets
from typing import Final

from d8mesh.apps.agent_questions import read_questions
from d8mesh.apps.agent_trial import AgentTrial
from d8mesh.apps.breeding import MAX_SEED
from d8mesh.apps.evolution_file import seed_in
from d8mesh.apps.fitness import FITNESS
from d8mesh.apps.genes import read_form
from d8mesh.apps.islands import EvolutionPlan
from d8mesh.apps.own_fitness import load_fitness
from d8mesh.apps.progress import one_line
from d8mesh.apps.scores import Contest
from d8mesh.errors import ConfigError

#: The fitness of agents that are asked questions.
AGENT: Final = "agent"


def plan_of(options: argparse.Namespace) -> EvolutionPlan:
    """Return the plan that the command's options tell.

    Raises:
        ConfigError: they contradict each other, or a file can't be used.
    """
    seed = options.seed
    if seed is None:
        seed = seed_in(options.output)
    if seed is None:
        seed = secrets.randbelow(MAX_SEED)
    return EvolutionPlan(
        problem=_contest(options, seed),
        population=options.population,
        generations=options.generations,
        mutation_rate=options.mutation_rate,
        seed=seed,
        islands=options.islands,
        migrate_every=options.migrate_every,
        patience=options.patience,
    )


def _contest(options: argparse.Namespace, seed: int) -> Contest:
    name = options.fitness or (AGENT if options.questions else next(iter(FITNESS)))
    if name == AGENT:
        if options.questions is None:
            raise ConfigError(
                "--fitness agent: expected --questions FILE, what the agents are asked"
            )
        questions = read_questions(options.questions)
        form = read_form(options.genome)
        return AgentTrial(form=form, questions=questions, seed=seed, judge=options.judge)
    if options.questions is not None:
        raise ConfigError(f"--questions is for --fitness agent, not for {one_line(name)}")
    if ":" in name:
        return load_fitness(name, read_form(options.genome, is_agent=False))
    if options.genome is not None:
        raise ConfigError(
            f"--genome is for --fitness agent and for a function of your own, "
            f"not for {one_line(name)}"
        )
    if name not in FITNESS:
        known = "; ".join(f"{each.name}: {each.summary}" for each in FITNESS.values())
        near = difflib.get_close_matches(name.lower(), [*FITNESS, AGENT], n=1)
        hint = f" did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"--fitness {one_line(name)!r} is not known:{hint} There are {known}; "
            "agent: agents that answer --questions; MODULE:FUNCTION of your own"
        )
    return FITNESS[name]
