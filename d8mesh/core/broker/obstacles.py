"""Words for how services and workers stand to a task, and what would have it run.

English, one sentence each; `words/es.po` has their forms.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from d8mesh.core.broker.standings import Obstacle, Standing
from d8mesh.core.protocol.wish import Cloud, Wish

#: Things that a sentence names one by one.
MAX_PLACES_NAMED: Final = 4
#: What manages its own models: `models pull` brings one there.
MANAGED_KINDS: Final = frozenset({"ollama"})
#: Reasons why a service cannot have a task until somebody does something.
NEEDS_SOMEBODY: Final = frozenset(
    {
        Obstacle.NOT_INSTALLED,
        Obstacle.LACKS,
        Obstacle.DOES_NOT_FIT,
        Obstacle.CLOUD_FORBIDDEN,
        Obstacle.ELSEWHERE,
    }
)


class Remedy(NamedTuple):
    """What would have a task run: in words, and the command that does it, if there is one."""

    text: str
    command: str = ""


def duration(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 10:
        return f"{max(seconds, 0.1):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def named(names: Iterable[str]) -> str:
    """Return names in one line, the first few of them."""
    listed = list(dict.fromkeys(names))
    more = f", … ({len(listed)})" if len(listed) > MAX_PLACES_NAMED else ""
    return ", ".join(listed[:MAX_PLACES_NAMED]) + more


def state_of(standing: Standing) -> str:
    """Return how a service stands to a task, without its name."""
    if standing.obstacle is None:
        return "free, it could have the task now"
    return _STATES[standing.obstacle](standing)


def _down(standing: Standing) -> str:
    why = standing.why
    return f"it offers nothing now: {why}" if why else "it has no models"


def _not_installed(standing: Standing) -> str:
    return "the model is not installed there"


def _lacks(standing: Standing) -> str:
    if standing.lacks == ("completion",):
        return "the model there cannot chat"
    return f"the model there lacks {', '.join(standing.lacks)}"


def _too_large(standing: Standing) -> str:
    return (
        f"the model does not fit there: {standing.why}"
        if standing.why
        else "the model does not fit there"
    )


def _paused(standing: Standing) -> str:
    told = f"paused: {standing.why}" if standing.why else "paused, it is not known why"
    if standing.until_s is None:
        return f"{told}; it is not known when it is tried again"
    return f"{told}; tried again in {duration(standing.until_s)}"


def _budget(standing: Standing) -> str:
    told = "what its account allows is used up"
    if standing.why:
        told += f": {standing.why}"
    if standing.until_s is None:
        return f"{told}; it is not known for how long"
    return f"{told}; for {duration(standing.until_s)} more"


def _loading(standing: Standing) -> str:
    if standing.until_s is None:
        return "it is loading the model"
    return f"it is loading the model, done in about {duration(standing.until_s)}"


def _full(standing: Standing) -> str:
    told = f"busy with {standing.in_flight} of {standing.slots} slots"
    if standing.in_flight > standing.slots:  # it has fewer than it had
        told = f"busy with {standing.in_flight} tasks"
    if standing.until_s is None:
        return told
    return f"{told}, one is free in about {duration(standing.until_s)}"


def _plainly(text: str) -> Callable[[Standing], str]:
    return lambda standing: text


_STATES: Final[dict[Obstacle, Callable[[Standing], str]]] = {
    Obstacle.AWAY: _plainly("away, no worker that reaches it is there"),
    Obstacle.DOWN: _down,
    Obstacle.NOT_INSTALLED: _not_installed,
    Obstacle.LACKS: _lacks,
    Obstacle.DOES_NOT_FIT: _too_large,
    Obstacle.CLOUD_FORBIDDEN: _plainly("in the cloud, where this task may not go"),
    Obstacle.CLOUD_OVERFLOW_ONLY: _plainly(
        "in the cloud, for when no machine of the LAN can begin soon"
    ),
    Obstacle.ELSEWHERE: _plainly("not the machine that the task asks for"),
    Obstacle.SECOND_CHOICE: _plainly("the task asks for another model first, and that is there"),
    Obstacle.PAUSED: _paused,
    Obstacle.BUDGET_USED: _budget,
    Obstacle.LOADING: _loading,
    Obstacle.FULL: _full,
    Obstacle.FAILED_BEFORE: _plainly("it failed this task before, others are tried first"),
    Obstacle.HELD_BACK: _plainly("free, but quicker ones will be done with the task sooner"),
    Obstacle.RESERVED: _plainly("its last free slot is kept for urgent tasks"),
}


def reason(wish: Wish, standings: Sequence[Standing]) -> str:
    """Return in one sentence why a task waits that services answer; empty: it need not."""
    if any(each.obstacle is None for each in standings):
        return ""
    fitting = [each for each in standings if each.obstacle not in NEEDS_SOMEBODY]
    model = f" with the model {named(repr(name) for name in wish.models)}" if wish.models else ""
    if not standings or not fitting:
        return _nobody(wish, standings, model)
    there = [each for each in fitting if each.obstacle is not Obstacle.AWAY]
    if not there:
        return f"no worker is there that reaches {_services(fitting)}{model}"
    kinds = {each.obstacle for each in there}
    if kinds <= {Obstacle.FULL, Obstacle.HELD_BACK} and Obstacle.HELD_BACK in kinds:
        rest = "will still be done with it sooner than one that is free"
        return f"the quicker services{model} are busy, and {rest}"
    if kinds <= {Obstacle.FULL, Obstacle.RESERVED} and Obstacle.RESERVED in kinds:
        return f"the last free slots{model} are kept for urgent tasks"
    if kinds <= {Obstacle.FULL}:
        count = len({each.service for each in there})
        if count == 1:
            return f"the one service{model} is busy"
        return f"all {count} services{model} are busy"
    if len(there) == 1:
        return f"{there[0].machine}{model}: {state_of(there[0])}"
    return f"none of {len(there)} services{model} can take it now: {_sample(there)}"


def _nobody(wish: Wish, standings: Sequence[Standing], model: str) -> str:
    kinds = {each.obstacle for each in standings}
    if wish.machine and kinds <= {Obstacle.ELSEWHERE}:
        near = _near(wish.machine, standings)
        meant = f"; did you mean {near!r}?" if near else ""
        return f"no worker reaches a service on {wish.machine!r}{meant}"
    if kinds <= {Obstacle.NOT_INSTALLED, Obstacle.ELSEWHERE}:
        return f"no worker reaches a service{model}"
    return f"no service{model} may have it: {_sample(standings)}"


def _services(standings: Sequence[Standing]) -> str:
    machines = named(each.machine for each in standings)
    return f"the service on {machines}" if len(standings) == 1 else f"the services on {machines}"


def _sample(standings: Sequence[Standing]) -> str:
    told = [f"{each.machine}: {state_of(each)}" for each in standings[:MAX_PLACES_NAMED]]
    more = (
        f"; and {len(standings) - MAX_PLACES_NAMED} more"
        if len(standings) > MAX_PLACES_NAMED
        else ""
    )
    return "; ".join(told) + more


# ------------------------------------------------------------------------- what would run it


def remedies(wish: Wish, standings: Sequence[Standing]) -> list[Remedy]:
    """Return what would have a task run that waits for a service, the nearest first."""
    if any(each.obstacle is None for each in standings):
        return []
    found = [*_start(standings), *_pull(wish, standings), *_allow_cloud(wish, standings)]
    if wish.machine and standings and all(s.obstacle is Obstacle.ELSEWHERE for s in standings):
        found += _other_machine(wish.machine, standings)
    if not standings:
        found.append(Remedy("start a worker on a machine with a language model", "worker"))
    if wish.is_strict and not any(each.obstacle not in NEEDS_SOMEBODY for each in standings):
        found.append(Remedy("let another model answer: leave out model_strict, or name others"))
    return found


def _start(standings: Sequence[Standing]) -> list[Remedy]:
    away = {each.machine for each in standings if each.obstacle is Obstacle.AWAY}
    down = {each.machine for each in standings if each.obstacle is Obstacle.DOWN}
    return [
        *(
            Remedy(f"start a worker on {machine}", "worker")
            for machine in sorted(away)[:MAX_PLACES_NAMED]
        ),
        *(Remedy(f"start the service on {machine}") for machine in sorted(down)[:MAX_PLACES_NAMED]),
    ]


def _other_machine(machine: str, standings: Sequence[Standing]) -> list[Remedy]:
    """Return what helps where a task is bound to a machine that nobody reaches."""
    near = _near(machine, standings)
    there = sorted({each.machine for each in standings}, key=lambda name: (name != near, name))
    return [
        Remedy(f"let it run where a service is, or leave out machine: {named(there)}"),
        Remedy(f"start a worker on {machine}", "worker"),
    ]


def _near(machine: str, standings: Sequence[Standing]) -> str:
    """Return the machine with a service that is likest to a name; empty: none is like it."""
    by_name = {each.machine.lower(): each.machine for each in standings}
    near = difflib.get_close_matches(machine.lower(), by_name, n=1)
    return by_name[near[0]] if near else ""


def _pull(wish: Wish, standings: Sequence[Standing]) -> list[Remedy]:
    """Return where a wished model could be installed; where all that have it are busy, too."""
    missing = [
        each
        for each in standings
        if each.obstacle is Obstacle.NOT_INSTALLED and each.kind in MANAGED_KINDS
    ]
    if not wish.models or not missing:
        return []
    model = wish.models[0]
    where = missing[0].machine if len(missing) == 1 else ""
    if where:
        return [Remedy(f"install {model} on {where}", f"models pull {model} --on {where}")]
    machines = named(each.machine for each in missing)
    return [Remedy(f"install {model} on one of {machines}", f"models pull {model} --fit")]


def _allow_cloud(wish: Wish, standings: Sequence[Standing]) -> list[Remedy]:
    clouds = [each for each in standings if each.obstacle is Obstacle.CLOUD_FORBIDDEN]
    if not clouds:
        return []
    where = named(each.machine for each in clouds)
    return [
        Remedy(
            f'allow the cloud ({where}): submit it with "cloud": "{Cloud.OVERFLOW}", '
            f"or set D8_CLOUD={Cloud.OVERFLOW} at the orchestrator"
        )
    ]
