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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import takewhile
from typing import Final, NamedTuple

from d8mesh.core.broker.services import ModelState, ServiceState, ServiceTable
from d8mesh.core.broker.standings import Obstacle
from d8mesh.core.protocol.model_names import plain_name
from d8mesh.core.protocol.wish import Cloud, Wish, parse_wish

#: Who submits with this priority or a higher one waits at a screen.
INTERACTIVE_PRIORITY: Final = 8
#: As long after such a request batch work leaves slots of its model free, this part at most.
INTERACTIVE_S: Final = 60.0
RESERVED_PART: Final = 0.1
#: A model stays in use for so long after its last request: where a service is full none is loaded
#: that may push it out, if somebody else runs what is waited for and nobody else has that one
#: loaded, or fewer than so many others do and people wait for it at screens.
IN_USE_S: Final = 60.0
HOMES_KEPT: Final = 2
#: A service that was full is taken to be so for this long.
FULL_S: Final = 600.0
#: Estimates that differ by less are equal.
EQUAL_PART: Final = 0.1
#: A conversation stays where it was unless that is so much fuller than another (of its slots).
AFFINITY_LOAD: Final = 0.5
#: The kind of service whose small model answers only what wishes for none and nobody else can.
LAST_RESORT_KIND: Final = "embedded"
#: A model is loaded ahead if so many tasks wait for each slot that has it.
WARM_LINE: Final = 3
#: A task that may go to the cloud if the LAN is full goes if it would wait longer than this.
OVERFLOW_S: Final = 10.0
#: A wish that is no must does not wait longer for a model that all who have it fail to run.
PAUSED_LONG_S: Final = 60.0
#: What a request takes where nothing is known of its kind.
PROMPT_TOKENS: Final = 200
OUTPUT_TOKENS: Final = 200
#: The longest answer of a task that says nothing of it, as the handlers bound it.
LONGEST_ANSWER_TOKENS: Final = 2000
#: Of a machine that nothing is known of: bytes read from memory for each token of an answer, which
#: is all of the model's, tokens of a prompt for one of an answer, and bytes loaded from its disk.
MEMORY_BYTES_PER_S: Final = 50e9
PROMPT_SPEEDUP: Final = 10.0
LOAD_BYTES_PER_S: Final = 500e6
MODEL_BYTES: Final = 5e9
#: Wishes whose candidates are remembered until something changes.
MAX_FOUND: Final = 10_000
#: Models that a refusal names.
MAX_NAMED_MODELS: Final = 20
#: Slots looked at one by one to tell when a line is through; more are taken as a flow.
EXACT_SLOTS: Final = 64


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


@dataclass(slots=True, eq=False)
class Weighed:
    """A candidate for a task, and what stands against it (None: nothing)."""

    model: ModelState
    obstacle: Obstacle | None
    #: seconds from its beginning to the end of the request, load and all
    estimate_s: float = 0.0
    #: the same without loading
    run_s: float = 0.0
    room: int = 0
    #: the same before what the pace taught, and whether by measured speeds
    raw_s: float = 0.0
    is_measured: bool = False
    until_s: float | None = None
    why: str = ""

    @property
    def load_s(self) -> float:
        """How long its model takes to load first; 0: it is loaded."""
        return self.estimate_s - self.run_s


class Choice(NamedTuple):
    """Who gets a task, who is to load its model meanwhile, and all that were weighed."""

    taken: Weighed | None
    warmed: Weighed | None
    weighed: list[Weighed]


# ----------------------------------------------------------------------------- who may


def tiers(table: ServiceTable, wish: Wish, *, is_expected: bool) -> list[list[ModelState]]:
    """Return the models that may run a wish: those of a later tier only if no earlier one can.

    Args:
        is_expected: a wish that is no must waits for its model too.
    """
    key = (wish.models, wish.is_strict, wish.needs, wish.machine, is_expected)
    found = table.tiers.get(key)
    if found is None:
        found = [_named(table, name, wish) for name in wish.models]
        if not wish.models or (not wish.is_strict and not is_expected and not any(found)):
            found += _defaults(table, wish)
        found = [tier for tier in found if tier]
        if len(table.tiers) > MAX_FOUND:
            table.tiers.clear()
        table.tiers[key] = found
    return found


def _named(table: ServiceTable, name: str, wish: Wish) -> list[ModelState]:
    """Return all models of a name, and those of other names with the same content."""
    named = table.by_name.get(plain_name(name), [])
    digests = {model.info.digest for model in named if model.info.digest}
    alike = [model for digest in sorted(digests) for model in table.by_digest[digest]]
    by_service: dict[str, ModelState] = {}
    for model in (*named, *alike):
        if _suits(model, wish):
            by_service.setdefault(model.service.id, model)
    return list(by_service.values())


def _defaults(table: ServiceTable, wish: Wish) -> list[list[ModelState]]:
    """Return what runs without a wish: defaults, and what is loaded; else what can do it."""
    found: list[ModelState] = []
    for service in table.services.values():
        able = [model for model in service.models.values() if _suits(model, wish)]
        ready = [
            model
            for model in able
            if model.name == service.default or (model.info.is_loaded and _chats(model, wish))
        ]
        found += ready or ([model for model in able if _is_sure(model, wish)] if wish.needs else [])
    last = [model for model in found if model.service.kind == LAST_RESORT_KIND]
    return [[model for model in found if model not in last], last]


def _suits(model: ModelState, wish: Wish) -> bool:
    can = model.info.can
    if wish.needs and can and not wish.needs <= set(can):
        return False
    return not wish.machine or is_at(model.service, wish.machine)


def _chats(model: ModelState, wish: Wish) -> bool:
    return bool(wish.needs) or not model.info.can or "completion" in model.info.can


def _is_sure(model: ModelState, wish: Wish) -> bool:
    return wish.needs <= set(model.info.can)


def is_at(service: ServiceState, machine: str) -> bool:
    """Return whether a service is at the machine, worker or service of that name."""
    wanted = machine.lower()
    names = {service.id.lower(), service.machine.lower()}
    for worker, _ in service.told.values():
        names |= {worker.worker_id.lower(), worker.host.lower()}
    return wanted in names


def why_never(table: ServiceTable, wish: Wish) -> str:
    """Return why no service will ever run a wish as things are, for people; empty: one may."""
    if tiers(table, wish, is_expected=False):
        return ""
    models = [model for service in table.services.values() for model in service.models.values()]
    if not models:
        return ""
    if wish.machine and not any(is_at(model.service, wish.machine) for model in models):
        return ""  # it may come
    names = {plain_name(name) for name in wish.models}
    named = [model for model in models if model.plain in names]
    if wish.is_strict and not named:
        listed = list(dict.fromkeys(model.name for model in models))
        more = f" and {len(listed) - MAX_NAMED_MODELS} more"
        told = ", ".join(listed[:MAX_NAMED_MODELS])
        told += more if len(listed) > MAX_NAMED_MODELS else ""
        return (
            f"model_strict: the model {wish.models[0]!r} is not installed here, and no "
            f"worker of the mesh offers it; installed: {told}"
        )
    needs = ", ".join(sorted(wish.needs))
    if named:
        return f"model: {named[0].name!r} cannot do all that this needs: {needs}"
    return f"none of the models of the mesh can do all that this needs: {needs}"


# ------------------------------------------------------------------------- how long


class Means(NamedTuple):
    """What is known of a model over all services: means, 0 where nothing is."""

    prompt_tokens: float
    output_tokens: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    pace: float
    load_s: float

    @classmethod
    def of(cls, models: Sequence[ModelState]) -> Means:
        """Return the means over models of one name."""
        infos = [model.info for model in models]
        requests = sum(info.requests for info in infos) or 1
        return cls(
            sum(info.prompt_tokens for info in infos) / requests,
            sum(info.output_tokens for info in infos) / requests,
            _mean(info.prompt_tokens_per_s for info in infos),
            _mean(info.output_tokens_per_s for info in infos),
            _mean(model.pace for model in models if not model.is_pace_measured),
            _mean(info.load_s for info in infos),
        )


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if value > 0.0]
    return sum(known) / len(known) if known else 0.0


class Estimate(NamedTuple):
    """How long a request takes at a model: to load, and to run, as it is thought and as it was."""

    load_s: float
    run_s: float
    raw_s: float
    is_measured: bool


def estimate(model: ModelState, wish: Wish, means: Means) -> Estimate:
    """Return how long a request of a wish takes at a model once it begins."""
    info = model.info
    prompt = wish.prompt_tokens or means.prompt_tokens or PROMPT_TOKENS
    output = means.output_tokens or OUTPUT_TOKENS
    if wish.output_tokens:
        output = min(output, wish.output_tokens)
    is_measured = info.output_tokens_per_s > 0.0 or info.prompt_tokens_per_s > 0.0
    by_size = MEMORY_BYTES_PER_S / (info.size_bytes or MODEL_BYTES)
    output_speed = info.output_tokens_per_s or means.output_tokens_per_s or by_size
    prompt_speed = (
        info.prompt_tokens_per_s or means.prompt_tokens_per_s or output_speed * PROMPT_SPEEDUP
    )
    raw_s = prompt / prompt_speed + output / output_speed
    if model.pace and model.is_pace_measured is is_measured:
        pace = model.pace
    else:
        pace = 1.0 if is_measured else means.pace or 1.0
    if model.is_loaded:
        load_s = 0.0
    else:
        load_s = info.load_s or means.load_s or (info.size_bytes or MODEL_BYTES) / LOAD_BYTES_PER_S
    return Estimate(load_s, raw_s * pace, raw_s, is_measured)


def line_done_s(others: Sequence[Weighed], waiting: int, now: float) -> float:
    """Return in how many seconds others would have done all that waits.

    An attempt that takes longer than expected is taken to need as long again as it has.
    """
    slots = [slot for each in others for slot in _slots(each, now)]
    if not slots:
        return float("inf")
    fastest = min(each.run_s for each in others)
    if len(slots) <= EXACT_SLOTS and waiting <= 4 * len(slots):
        heapify(slots)
        done = 0.0
        for _ in range(waiting):
            free, run_s = slots[0]
            done = max(done, free + run_s)
            heapreplace(slots, (free + run_s, run_s))
        return done
    slots.sort()
    rate = passed = 0.0
    begun = waiting - 1.0
    for free, run_s in slots:  # as a flow, from one slot's being free to the next one's
        if rate and (free - passed) * rate >= begun:
            break
        begun -= (free - passed) * rate
        rate, passed = rate + 1.0 / run_s, free
    return passed + begun / rate + fastest


def _slots(each: Weighed, now: float) -> list[tuple[float, float]]:
    """Return of each slot when it is free, and how long a request takes there."""
    model, run_s = each.model, max(each.run_s, 1e-3)
    bound = max(1, model.bound(now))
    if not model.is_loaded:  # what waits for the load is in its slots then, too
        left_s = model.loaded_by - now
        left_s = left_s if left_s > 0.0 else each.load_s - left_s
        slots = max(1, model.info.slots)
        return [(left_s + run_s * (n < model.in_flight), run_s) for n in range(slots)]
    found: list[tuple[float, float]] = []
    for flight in model.service.flights.values():
        if flight.model == model.name and len(found) < bound:
            taken, expected = now - flight.since, flight.expected_s or run_s
            found.append((expected - taken if taken < expected else taken, run_s))
    return found + [(0.0, run_s)] * (bound - len(found))


# ------------------------------------------------------------------------------- who


def weigh(table: ServiceTable, ask: Ask, cloud: Cloud, now: float) -> list[Weighed]:
    """Return the candidates of the tier that counts, each with what stands against it alone.

    Where no tier has any that is worth waiting for, those of all.
    """
    may_leave = ask.wish.cloud or cloud
    all_weighed: list[Weighed] = []
    found = tiers(table, ask.wish, is_expected=ask.is_expected)
    is_wish = bool(ask.wish.models) and not ask.wish.is_strict
    if is_wish and (_is_long_paused(found, now) or _is_forbidden(found, may_leave)):
        found = [*found, *_defaults(table, ask.wish)]
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


def _is_long_paused(found: list[list[ModelState]], now: float) -> bool:
    models = [model for tier in found for model in tier]
    return bool(models) and all(
        not model.reach and model.paused and now - model.paused_since > PAUSED_LONG_S
        for model in models
    )


def _is_forbidden(found: list[list[ModelState]], may_leave: Cloud) -> bool:
    """Return whether only clouds have what is wished for, and the task may not go there."""
    models = [model for tier in found for model in tier]
    return bool(models) and may_leave is Cloud.NEVER and all(m.service.is_cloud for m in models)


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
    elif budget is not None and not budget.fits(ask.tokens):
        each.obstacle = Obstacle.DOES_NOT_FIT
        each.why = f"about {ask.tokens} tokens are more than its account allows in a minute"
    elif budget is not None and (wait_s := budget.free_in_s(ask.tokens, now)) > 0.0:
        each.obstacle, each.until_s, each.why = Obstacle.BUDGET_USED, wait_s, budget.why(now)
    elif not each.room or model.worker() is None:
        each.obstacle = Obstacle.LOADING if model.is_loading(now) else Obstacle.FULL
    elif model.service.is_cloud and may_leave is Cloud.OVERFLOW:
        each.obstacle = Obstacle.CLOUD_OVERFLOW_ONLY


def has_room(table: ServiceTable, ask: Ask, now: float) -> bool:
    """Return whether a candidate has room, whatever else stands against it: a quick look."""
    found = tiers(table, ask.wish, is_expected=ask.is_expected)
    is_there = any(model.room(now) for tier in found for model in tier)
    return is_there or (not ask.wish.is_strict and _is_long_paused(found, now))


def concerned(table: ServiceTable, text: str) -> frozenset[ModelState]:
    """Return the models that may run a wish, whatever stands against them now."""
    found = table.concerned.get(text)
    if found is None:
        wish = parse_wish(text)
        named = tiers(table, wish, is_expected=False)
        found = frozenset(model for tier in named for model in tier)
        if len(table.concerned) > MAX_FOUND:
            table.concerned.clear()
        table.concerned[text] = found
    return found


def choose(table: ServiceTable, ask: Ask, cloud: Cloud, now: float) -> Choice:
    """Return which candidate gets a task now, if any."""
    weighed = weigh(table, ask, cloud, now)
    _let_overflow(weighed, ask, now)
    if not any(each.obstacle is None for each in weighed):
        return Choice(None, None, weighed)
    _reserve(table, weighed, ask, now)
    warmed: Weighed | None = None
    free = [each for each in weighed if each.obstacle is None]
    free.sort(key=lambda each: (each.estimate_s, each.model.service.id, each.model.name))
    running = [each for each in weighed if _is_running(each, now)]
    line = _Line(table, running, ask.waiting, now)
    for each in free:
        verdict = _verdict(each, line, now)
        if verdict is None:
            equals = [
                other
                for other in free
                if other.obstacle is None
                and each.estimate_s <= other.estimate_s <= each.estimate_s * (1 + EQUAL_PART)
            ]
            return Choice(_of_equals(table, equals, ask, now), warmed, weighed)
        each.obstacle = verdict
        if verdict is Obstacle.LOADING and warmed is None:
            warmed = each
    return Choice(None, warmed, weighed)


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


class _Line:
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


def _verdict(each: Weighed, line: _Line, now: float) -> Obstacle | None:
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
    if each.estimate_s <= line.done_s(others, 1):
        return None
    done_s = line.done_s(others, line.waiting)
    if _is_to_warm(each, others, line.waiting, now) and each.load_s <= done_s:
        return Obstacle.LOADING
    has_tried = each.model.warming_until > 0.0
    return None if has_tried and each.estimate_s <= done_s else Obstacle.HELD_BACK


def _is_running(other: Weighed, now: float) -> bool:
    """Return whether a candidate works on the line, or will as soon as it has loaded."""
    if other.obstacle not in (Obstacle.FULL, Obstacle.LOADING):
        return False
    return other.model.is_loaded or other.model.is_loading(now)


def _pushes_out(table: ServiceTable, model: ModelState, now: float) -> bool:
    """Return whether loading a model may push another out that somebody needs there."""
    service = model.service
    if now - service.was_full > FULL_S:
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


def _is_to_warm(each: Weighed, others: list[Weighed], waiting: int, now: float) -> bool:
    model = each.model
    if model.warming_until or model.service.flights:
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
