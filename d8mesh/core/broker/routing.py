"""Which LLM service gets a placed task: pure policy over the table of services.

A candidate is a model of a service that a live worker reaches. What stands against it is an
`Obstacle`; of those that nothing stands against the one is taken that would have the task done
first. `weigh` finds both, for the scheduler that hands out and for who asks why.

- The models of a wish in their order: a later one only while no earlier one is to be had.
- A wish that is no must and that nobody has counts as none: any service's default model, and what
  it has loaded besides, will do.
- A slower candidate gets a task only if it has it done before the faster ones would be through
  with the line; one that must load its model first, only if the task itself gains, else it is
  told to load while the line is long.
- Of equals the one that had the conversation last, unless it is much fuller than another; then the
  emptiest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import Final, NamedTuple

from d8mesh.core.broker.candidates import defaults, tiers
from d8mesh.core.broker.estimates import PROMPT_TOKENS, Means, Weighed, estimate, line_done_s
from d8mesh.core.broker.service_states import (
    ModelState,
)
from d8mesh.core.broker.services import ServiceTable
from d8mesh.core.broker.standings import Obstacle
from d8mesh.core.protocol.wish import INTERACTIVE_PRIORITY, Cloud, Wish

#: As long after a request of `INTERACTIVE_PRIORITY` batch work leaves slots of its model free,
#: this part at most.
INTERACTIVE_S: Final = 60.0
RESERVED_PART: Final = 0.1
#: A model stays in use for so long after its last request: where a service is full none is loaded
#: that may push it out, if somebody else runs what is waited for and nobody else has that one
#: loaded, or fewer than so many others do and people wait for it at screens.
IN_USE_S: Final = 60.0
HOMES_KEPT: Final = 2
#: A service that was full is taken to be so for this long.
FULL_KNOWN_S: Final = 600.0
#: Estimates that differ by less are equal.
EQUAL_PART: Final = 0.1
#: A conversation stays where it was unless that is so much fuller than another (of its slots).
AFFINITY_LOAD: Final = 0.5
#: A model is loaded ahead if so many tasks wait for each slot that has it.
WARM_LINE: Final = 3
#: A task that may go to the cloud if the LAN is full goes if it would wait longer than this.
OVERFLOW_S: Final = 10.0
#: A wish that is no must does not wait longer for a model that all who have it fail to run.
PAUSED_LONG_S: Final = 60.0
#: The longest answer of a task that says nothing of it, as the handlers bound it.
LONGEST_ANSWER_TOKENS: Final = 2000


class Ask(NamedTuple):
    """What is asked for a task."""

    wish: Wish
    priority: int
    #: services where attempts of it ended badly
    failed_at: frozenset[str] = frozenset()
    #: tasks of its line that wait, those before it in priority and itself among them
    waiting: int = 1
    #: a model of the wish that nobody has now may be back at any moment
    is_expected: bool = False

    @property
    def tokens(self) -> int:
        """What an account counts of it when it is sent: the longest answer that is asked for."""
        prompt = self.wish.prompt_tokens or PROMPT_TOKENS
        return prompt + (self.wish.output_tokens or LONGEST_ANSWER_TOKENS)


class RoutingChoice(NamedTuple):
    """Who gets a task, who is to load its model meanwhile, and all that were weighed."""

    taken: Weighed | None
    warmed: Weighed | None
    weighed: list[Weighed]


def weigh(table: ServiceTable, ask: Ask, cloud: Cloud, now: float) -> list[Weighed]:
    """Return the candidates of the tier that counts, each with what stands against it alone.

    Where no tier has any that is worth waiting for, those of all.
    """
    may_leave = ask.wish.cloud or cloud
    all_weighed: list[Weighed] = []
    found = tiers(table, ask.wish, is_expected=ask.is_expected)
    if _is_given_up(found, ask, may_leave, now):
        named = {model for tier in found for model in tier}
        others = [[m for m in tier if m not in named] for tier in defaults(table, ask.wish)]
        found = [*found, *others]
    for tier in found:
        weighed = _weigh_tier(table, tier, ask, may_leave, now)
        if any(each.obstacle in _USABLE for each in weighed):
            return weighed
        all_weighed += weighed
    return all_weighed


#: What may pass by itself within one request: such a candidate is worth waiting for.
_USABLE: Final = (None, Obstacle.FULL, Obstacle.LOADING, Obstacle.CLOUD_OVERFLOW_ONLY)


#: What has slots that requests run in, or could.
_AT_WORK: Final = (None, Obstacle.FULL)


def _is_given_up(found: list[list[ModelState]], ask: Ask, may_leave: Cloud, now: float) -> bool:
    """Return whether a wish that is no must counts as none: who has its model is of no use."""
    models = [model for tier in found for model in tier]
    return (
        bool(ask.wish.models and models)
        and not ask.wish.is_strict
        and all(
            (model.service.is_cloud and may_leave is Cloud.NEVER)
            or (not model.reach and model.paused and now - model.paused_since > PAUSED_LONG_S)
            or _is_too_large(model, ask)
            for model in models
        )
    )


def _is_too_large(model: ModelState, ask: Ask) -> bool:
    return model.budget is not None and not model.budget.fits(ask.tokens)


def why_too_large(table: ServiceTable, ask: Ask) -> str:
    """Return why no account will ever take what must run there, for people; empty: one may."""
    models = [model for tier in tiers(table, ask.wish, is_expected=False) for model in tier]
    if not (ask.wish.is_strict and models and all(_is_too_large(each, ask) for each in models)):
        return ""
    return (
        f"model_strict: about {ask.tokens} tokens, the longest answer among them, are more than "
        f"the account of {models[0].name!r} allows in a minute; a smaller max_tokens may do"
    )


def _weigh_tier(
    table: ServiceTable, tier: Sequence[ModelState], ask: Ask, may_leave: Cloud, now: float
) -> list[Weighed]:
    means: dict[str, Means] = {}
    weighed = []
    for model in tier:
        if model.plain not in means:
            means[model.plain] = Means.of(table.by_name.get(model.plain, ()))
        expected = estimate(model, ask.wish, means[model.plain])
        room = model.room(now)
        each = Weighed(model, None, expected.load_s + expected.run_s, expected.run_s, room)
        each.raw_s, each.is_measured = expected.raw_s, expected.is_measured
        _find_obstacle(each, ask, may_leave, now)
        weighed.append(each)
    fresh = [each for each in weighed if each.model.service.id not in ask.failed_at]
    if ask.failed_at and any(each.obstacle in _USABLE for each in fresh):
        for each in weighed:
            if each.model.service.id in ask.failed_at and each.obstacle in _USABLE:
                each.obstacle = Obstacle.FAILED_BEFORE
    return weighed


def _find_obstacle(each: Weighed, ask: Ask, may_leave: Cloud, now: float) -> None:
    model, budget = each.model, each.model.budget
    if model.service.is_cloud and may_leave is Cloud.NEVER:
        each.obstacle = Obstacle.CLOUD_FORBIDDEN
    elif not model.reach:
        each.obstacle, each.why = Obstacle.PAUSED, model.paused
    elif now < model.own_pause_until:
        each.obstacle, each.until_s = Obstacle.PAUSED, model.own_pause_until - now
    elif _is_too_large(model, ask):
        each.obstacle = Obstacle.DOES_NOT_FIT
        each.why = f"about {ask.tokens} tokens are more than its account allows in a minute"
    elif budget is not None and (wait_s := budget.free_in_s(ask.tokens, now)) > 0.0:
        each.obstacle, each.until_s, each.why = Obstacle.BUDGET_USED, wait_s, budget.why(now)
    elif not each.room or model.worker() is None:
        each.obstacle = Obstacle.LOADING if model.is_loading(now) else Obstacle.FULL
    elif model.service.is_cloud and may_leave is Cloud.OVERFLOW:
        each.obstacle = Obstacle.CLOUD_OVERFLOW_ONLY


def has_room(table: ServiceTable, ask: Ask, cloud: Cloud, now: float) -> bool:
    """Return whether a candidate has room, whatever else stands against it: a quick look."""
    found = tiers(table, ask.wish, is_expected=ask.is_expected)
    is_there = any(model.room(now) for tier in found for model in tier)
    return is_there or _is_given_up(found, ask, ask.wish.cloud or cloud, now)


def choose(table: ServiceTable, ask: Ask, cloud: Cloud, now: float) -> RoutingChoice:
    """Return which candidate gets a task now, if any."""
    weighed = weigh(table, ask, cloud, now)
    _let_overflow(weighed, ask, now)
    if not any(each.obstacle is None for each in weighed):
        return RoutingChoice(None, None, weighed)
    _reserve(table, weighed, ask, now)
    warmed: Weighed | None = None
    free = [each for each in weighed if each.obstacle is None]
    free.sort(key=lambda each: (each.estimate_s, each.model.service.id, each.model.name))
    running = [each for each in weighed if _is_running(each, now)]
    line = _LineAhead(table, running, ask.waiting, now)
    for each in free:
        verdict = _verdict(each, line, now)
        if verdict is None:
            equals = [
                other
                for other in free
                if other.obstacle is None
                and each.estimate_s <= other.estimate_s <= each.estimate_s * (1 + EQUAL_PART)
            ]
            return RoutingChoice(_of_equals(table, equals, ask, now), warmed, weighed)
        each.obstacle = verdict
        if verdict is Obstacle.LOADING and warmed is None:
            warmed = each
    return RoutingChoice(None, warmed, weighed)


def _let_overflow(weighed: list[Weighed], ask: Ask, now: float) -> None:
    """Let a task go to the cloud that may if the LAN cannot begin with it soon."""
    cloudy = [each for each in weighed if each.obstacle is Obstacle.CLOUD_OVERFLOW_ONLY]
    if not cloudy or any(each.obstacle is None for each in weighed):
        return
    near = [
        each
        for each in weighed
        if not each.model.service.is_cloud and each.obstacle in (Obstacle.FULL, Obstacle.LOADING)
    ]
    fastest = min((each.run_s for each in near), default=0.0)
    if line_done_s(near, ask.waiting, now) - fastest > OVERFLOW_S:
        for each in cloudy:
            each.obstacle = None


def _reserve(table: ServiceTable, weighed: list[Weighed], ask: Ask, now: float) -> None:
    """Keep a few slots free of batch work while somebody waits at a screen now and then."""
    if ask.priority >= INTERACTIVE_PRIORITY or not table.interactive:
        return
    latest = max(table.interactive.get(each.model.plain, -INTERACTIVE_S) for each in weighed)
    if now - latest >= INTERACTIVE_S:
        return
    ready = [each for each in weighed if each.obstacle in _AT_WORK and not each.load_s]
    kept = int(sum(each.model.bound(now) for each in ready) * RESERVED_PART)
    fastest = min((each.run_s for each in ready), default=0.0) * (1 + EQUAL_PART)
    best = [each for each in ready if each.run_s <= fastest]
    if sum(each.room for each in best) <= kept:
        for each in best:
            each.obstacle = each.obstacle or Obstacle.RESERVED


class _LineAhead:
    """The line of a task, and those that work on it: how soon they would be through with it."""

    def __init__(
        self, table: ServiceTable, running: list[Weighed], waiting: int, now: float
    ) -> None:
        self.table = table
        self._running = sorted(running, key=lambda each: each.run_s)
        self.waiting = waiting
        self._now = now
        #: (how many of the fastest work on it, tasks) -> seconds
        self._done_s: dict[tuple[int, int], float] = {}
        #: no candidate that has it loaded and is as slow as this, or slower, is to have the task
        self.too_slow_s = math.inf

    def faster_than(self, estimate_s: float) -> list[Weighed]:
        """Return those that run a task in clearly less time than this."""
        bound = estimate_s * (1 - EQUAL_PART)
        return list(takewhile(lambda each: each.run_s < bound, self._running))

    def done_s(self, others: Sequence[Weighed], waiting: int) -> float:
        """Return in how many seconds those of `faster_than` would have done so many tasks."""
        key = (len(others), waiting)
        if key not in self._done_s:
            self._done_s[key] = line_done_s(others, waiting, self._now)
        return self._done_s[key]


def _verdict(each: Weighed, line: _LineAhead, now: float) -> Obstacle | None:
    """Return why a candidate that is free had better not get the task, None if it had."""
    if not each.load_s and each.estimate_s >= line.too_slow_s:
        return Obstacle.HELD_BACK
    others = line.faster_than(each.estimate_s)
    if not others:
        return None
    if not each.load_s:
        if each.estimate_s <= line.done_s(others, line.waiting):
            return None
        line.too_slow_s = each.estimate_s
        return Obstacle.HELD_BACK
    if _pushes_out(line.table, each.model, now):
        return Obstacle.HELD_BACK
    done_s = line.done_s(others, line.waiting)
    if each.model.warming_until:  # it was asked to load, and that came to nothing
        return None if each.estimate_s <= done_s else Obstacle.HELD_BACK
    if not any(other.model.is_loaded for other in others):
        return None if each.estimate_s <= line.done_s(others, 1) else Obstacle.HELD_BACK
    is_sooner = each.estimate_s <= line.done_s(others, 1)
    is_long = _is_long(each, others, line.waiting, now) and each.load_s <= done_s
    return Obstacle.LOADING if is_sooner or is_long else Obstacle.HELD_BACK


def _is_running(other: Weighed, now: float) -> bool:
    """Return whether a candidate works on the line, or will as soon as it has loaded."""
    if other.obstacle not in (Obstacle.FULL, Obstacle.LOADING):
        return False
    return other.model.is_loaded or other.model.is_loading(now)


def _pushes_out(table: ServiceTable, model: ModelState, now: float) -> bool:
    """Return whether loading a model may push another out that somebody needs there."""
    service = model.service
    if now - service.was_full > FULL_KNOWN_S:
        return False
    loaded = [m for m in service.models.values() if m.info.is_loaded or m.is_loading(now)]
    return len(loaded) >= service.most_loaded and any(
        _is_needed(table, other, now) for other in loaded
    )


def _is_needed(table: ServiceTable, model: ModelState, now: float) -> bool:
    """Return whether a model is in use and hardly anybody else has it loaded."""
    if not model.in_flight and now - model.used >= IN_USE_S:
        return False
    others = sum(m.is_loaded and bool(m.reach) for m in table.by_name.get(model.plain, ())) - 1
    is_asked = now - table.interactive.get(model.plain, -math.inf) < INTERACTIVE_S
    return others < (HOMES_KEPT if is_asked else 1)


def _is_long(each: Weighed, others: list[Weighed], waiting: int, now: float) -> bool:
    """Return whether a line is so long that a service with nothing to do had better help."""
    if each.model.service.flights:
        return False
    slots = sum(max(1, other.model.bound(now)) for other in others)
    return waiting >= WARM_LINE * slots


def _of_equals(table: ServiceTable, equals: list[Weighed], ask: Ask, now: float) -> Weighed:
    had = table.conversations.get(ask.wish.conversation) if ask.wish.conversation else None

    def rank(each: Weighed) -> tuple[float, str, str]:
        model = each.model
        load = model.in_flight / max(1, model.bound(now))
        if (model.service.id, model.name) == had:
            load -= AFFINITY_LOAD
        return (load, model.service.id, model.name)

    return min(equals, key=rank)
