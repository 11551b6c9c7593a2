"""One account with a service in the cloud: counts what is sent, says no before the service does.

The orchestrator keeps all workers that share a key within its bounds together; what is here is the
last line, and what tells it of this worker.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from d8mesh.backends.accounts import ledger
from d8mesh.backends.accounts.bounds import Bounds, bounds_of, set_bounds
from d8mesh.backends.accounts.days import DAY_S, Day, day_end_at
from d8mesh.backends.accounts.siblings import Siblings
from d8mesh.core.protocol.messages import MAX_RECENT, Budget
from d8mesh.errors import BackendLimitError, BackendTooLargeError
from d8mesh.setting_forms import CLOUD_BOUNDS

#: What services count a minute by: any of so many seconds.
MINUTE_S: Final = 60.0
#: A minute is taken for so much longer here, as no two clocks go alike; for less than orchestrators
#: take it for: what they place is not to be given back.
LATE_S: Final = 0.25
#: Models of one account that are remembered; more are names that were made up.
MAX_ACCOUNT_MODELS: Final = 200
#: What was estimated as larger than a whole minute by this much can never fit; else it may.
TOO_LARGE: Final = 1.5
#: A service that is overloaded for a moment is left alone for so long, doubled each time.
OVERLOAD_REST_S: Final = 5.0
MAX_OVERLOAD_REST_S: Final = 120.0
#: The day on which summer time ends; what ends later was counted by a clock that was ahead.
LONGEST_DAY_S: Final = DAY_S + 3600
#: The longest block that is written down: a service may ask to wait for so long.
KEPT_BLOCK_S: Final = 2 * DAY_S
#: For good: it is not written down, so a worker that is started again asks again.
FOR_GOOD_S: Final = 1e8


@dataclass(frozen=True, slots=True)
class Clocks:
    """Which clocks are looked at; others only in tests."""

    #: monotonic seconds
    now: Callable[[], float] = time.monotonic
    #: Unix seconds
    at: Callable[[], float] = time.time


@dataclass(slots=True, eq=False)
class Booking:
    """One request that was sent, or is about to be."""

    model: str
    #: monotonic seconds: when it was sent, and once the service has answered, when that was:
    #: it counts there from some moment between the two
    since: float
    tokens: int
    has_arrived: bool = False


@dataclass(slots=True)
class ModelUse:
    """What was used with one model."""

    recent: list[Booking] = field(default_factory=list)
    #: Unix seconds
    day_ends_at: float = 0.0
    day_requests: int = 0
    day_tokens: int = 0
    #: monotonic seconds
    blocked_until: float = 0.0
    blocked_why: str = ""
    learnt: dict[str, int] = field(default_factory=dict)
    #: times in a row that the service was overloaded
    overloads: int = 0


class Account:
    """What one key allows with each model, and what was used of it.

    Args:
        provider: whose key it is.
        service_id: what `service_id_of` says.
        limits: of D8_CLOUD_LIMITS.
        day: where the provider's day ends.
        minute_s: other than 60 only in tests.

    Thread: any.
    """

    def __init__(
        self,
        provider: str,
        service_id: str,
        *,
        limits: tuple[tuple[str, str, int], ...] = (),
        day: Day = Day.UTC,
        minute_s: float = MINUTE_S,
        clocks: Clocks = Clocks(),
    ) -> None:
        self._provider, self._limits, self._day = provider, limits, day
        self.service_id = service_id
        self._clock, self._wall = clocks.now, clocks.at
        self._span_s = minute_s + LATE_S * minute_s / MINUTE_S
        self._models: dict[str, ModelUse] = {}
        self._path: Path | None = None
        self._siblings: Siblings | None = None
        self._lock = threading.Lock()
        self._file_notice = self._disk_notice = ""

    @property
    def notice(self) -> str:
        """What people should know; "" if there is nothing."""
        return "; ".join(filter(None, (self._file_notice, self._disk_notice)))

    # --- asking

    def begin(self, model: str, tokens: int) -> Booking:
        """Count a request that is sent now, of about so many tokens.

        Raises:
            BackendLimitError: not now; the message says why and for how long.
            BackendTooLargeError: it is larger than the account allows at any time.
        """
        with self._lock:
            use, now = self._use(model), self._clock()
            tokens = self._fitting(model, use, tokens)
            wait_s, why = self._wait(model, use, tokens)
            if wait_s > 0:
                raise BackendLimitError(f"{self._provider}, {model}: {why}, for {_span(wait_s)}")
            booking = Booking(model, now, tokens)
            use.recent.append(booking)
            use.day_requests += 1
            use.day_tokens += tokens
            self._save()
            return booking

    def arrived(self, booking: Booking) -> None:
        """Note that the service has a request for certain by now; it counts from here on."""
        with self._lock:
            self._arrived(booking)

    def settle(self, booking: Booking, tokens: int) -> None:
        """Correct what a request took; the service has answered it, or nobody waits any more."""
        with self._lock:
            self._arrived(booking)
            use = self._use(booking.model)
            use.day_tokens = max(0, use.day_tokens + tokens - booking.tokens)
            booking.tokens = tokens
            use.overloads = 0 if tokens else use.overloads  # 0: it was refused
            self._save()

    # --- learning

    def learn(self, model: str, bounds: Mapping[str, int]) -> None:
        """Note bounds that the service told."""
        with self._lock:
            use = self._use(model)
            told = {name: n for name, n in bounds.items() if name in CLOUD_BOUNDS and n > 0}
            if told.items() <= use.learnt.items():
                return
            use.learnt |= told
            self._save()

    def block(self, model: str, for_s: float, why: str) -> None:
        """Send nothing to a model for `for_s` seconds from now."""
        with self._lock:
            use = self._use(model)
            until = self._clock() + max(0.0, min(for_s, FOR_GOOD_S))
            if until > use.blocked_until:
                use.blocked_until, use.blocked_why = until, why[:1000]
                self._save()

    def block_shortly(self, model: str, why: str, *, for_s: float | None = None) -> None:
        """Leave a service alone that is overloaded; for longer each time, if it does not say."""
        with self._lock:
            use = self._use(model)
            grown_s = min(OVERLOAD_REST_S * 2**use.overloads, MAX_OVERLOAD_REST_S)
            use.overloads = min(use.overloads + 1, 10)
        self.block(model, grown_s if for_s is None else for_s, why)

    def block_today(self, model: str, why: str) -> None:
        """Send nothing to a model until the provider's day is over."""
        at = self._wall()
        self.block(model, day_end_at(self._day, at) - at, why)

    # --- telling

    def bounds(self, model: str) -> Bounds:
        """Return what the account allows for `model`."""
        with self._lock:
            return self._bounds(model, self._use(model))

    def budget(self, model: str) -> Budget:
        """Return what it allows and what was used, as it is told to orchestrators."""
        with self._lock:
            use, now, at = self._use(model), self._clock(), self._wall()
            bounds = self._bounds(model, use)
            # What others of this machine have used is not in the figures, which orchestrators
            # add up, but it may be the reason why nothing can be sent.
            blocked_s, why = self._wait(model, use, 1)
            return Budget(
                minute_requests=bounds.minute_requests,
                minute_tokens=bounds.minute_tokens,
                day_requests_bound=bounds.day_requests,
                day_tokens_bound=bounds.day_tokens,
                recent=[(_age_s(each, now), each.tokens) for each in use.recent[-MAX_RECENT:]],
                day_requests=use.day_requests,
                day_tokens=use.day_tokens,
                day_left_s=max(0.0, use.day_ends_at - at),
                blocked_s=blocked_s,
                blocked_why=why,
            )

    # --- keeping

    def keep_in(self, path: Path) -> None:
        """Keep what is used in the file `path`, and take up what is there."""
        kept, notice = ledger.read(path)
        with self._lock:
            self._path, self._file_notice, self._siblings = path, notice, Siblings(path)
            now, at = self._clock(), self._wall()
            for model, each in kept.models.items():
                use = self._use(model)
                use.recent += [
                    Booking(model, now - max(0.0, at - since_at), n, has_arrived=True)
                    for since_at, n in each.recent
                ]
                use.recent.sort(key=_since)
                if each.day_ends_at > at:
                    use.day_ends_at = min(each.day_ends_at, day_end_at(self._day, at))
                    use.day_requests += each.day_requests
                    use.day_tokens += each.day_tokens
                if (left_s := _left_s(each, at)) > 0:
                    use.blocked_until, use.blocked_why = now + left_s, each.blocked_why
                use.learnt = dict(each.learnt) | use.learnt
            self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        now, at = self._clock(), self._wall()
        models = {
            model: ledger.KeptUse(
                recent=[(max(0.0, at - _age_s(each, now)), each.tokens) for each in use.recent],
                day_ends_at=use.day_ends_at,
                day_requests=use.day_requests,
                day_tokens=use.day_tokens,
                blocked_until_at=_kept_until_at(at, use.blocked_until - now),
                blocked_why=use.blocked_why,
                learnt=use.learnt,
            )
            for model, use in self._models.items()
        }
        try:
            ledger.write(self._path, ledger.KeptAccount(models))
        except OSError as error:
            self._disk_notice = f"what is used of the account cannot be written down ({error})"
        else:
            self._disk_notice = ""

    # --- counting

    def _use(self, model: str) -> ModelUse:
        """Return what was used with `model`, without what is over."""
        if model not in self._models and len(self._models) >= MAX_ACCOUNT_MODELS:
            del self._models[next(iter(self._models))]
        use = self._models.setdefault(model, ModelUse())
        now, at = self._clock(), self._wall()
        use.recent = [each for each in use.recent if _age_s(each, now) < self._span_s]
        if at >= use.day_ends_at:
            use.day_requests = use.day_tokens = 0
        if not 0 < use.day_ends_at - at <= LONGEST_DAY_S:
            use.day_ends_at = day_end_at(self._day, at)
        return use

    def _arrived(self, booking: Booking) -> None:
        if not booking.has_arrived:
            booking.since, booking.has_arrived = self._clock(), True
            self._use(booking.model).recent.sort(key=_since)

    def _bounds(self, model: str, use: ModelUse) -> Bounds:
        given = set_bounds(self._limits, self._provider, model)
        return bounds_of(self._provider, model, given=given, learnt=use.learnt)

    def _fitting(self, model: str, use: ModelUse, tokens: int) -> int:
        """Return how many tokens to count; the estimate may be too high for what would fit."""
        most = self._bounds(model, use).minute_tokens
        if not most or tokens <= most:
            return tokens
        if tokens > most * TOO_LARGE:
            raise BackendTooLargeError(
                f"{self._provider}, {model}: a request of about {tokens} tokens, answer "
                f"included, can never fit: the account allows {most} a minute. Lower max_tokens, "
                "or ask another model"
            )
        return most

    def _wait(self, model: str, use: ModelUse, tokens: int) -> tuple[float, str]:
        """Return for how long nothing of this size may be sent, and why; 0 if it may now."""
        bounds, all_used = self._bounds(model, use), self._all_used(model, use)
        if all_used.blocked_s > 0:
            return all_used.blocked_s, all_used.blocked_why
        left_s = max(0.0, use.day_ends_at - self._wall())
        if bounds.day_requests and all_used.day_requests >= bounds.day_requests:
            return left_s, f"all {bounds.day_requests} requests of the day are used up"
        if bounds.day_tokens and all_used.day_tokens + tokens > bounds.day_tokens:
            return left_s, f"the {bounds.day_tokens} tokens of the day are used up"
        recent = all_used.recent
        if bounds.minute_requests and len(recent) >= bounds.minute_requests:
            age_s, _ = recent[len(recent) - bounds.minute_requests]
            why = f"all {bounds.minute_requests} requests of this minute are used up"
            return self._span_s - age_s, why
        over = sum(n for _, n in recent) + tokens - bounds.minute_tokens
        for age_s, n in recent if bounds.minute_tokens and over > 0 else ():
            over -= n
            if over <= 0:
                why = f"the {bounds.minute_tokens} tokens of this minute are used up"
                return self._span_s - age_s, why
        return 0.0, ""

    def _all_used(self, model: str, use: ModelUse) -> _AllUsed:
        """Return what this worker and the others of this machine have used."""
        now, at = self._clock(), self._wall()
        found = _AllUsed(
            [(_age_s(each, now), each.tokens) for each in use.recent],
            use.day_requests,
            use.day_tokens,
            use.blocked_until - now,
            use.blocked_why,
        )
        for other in self._siblings.used(model) if self._siblings is not None else ():
            ages = [(max(0.0, at - since_at), n) for since_at, n in other.recent]
            found.recent += [each for each in ages if each[0] < self._span_s]
            if other.day_ends_at > at:
                found.day_requests += other.day_requests
                found.day_tokens += other.day_tokens
            if (left_s := _left_s(other, at)) > found.blocked_s:
                found.blocked_s, found.blocked_why = left_s, other.blocked_why
        found.recent.sort(reverse=True)  # the oldest first
        return found


@dataclass(slots=True)
class _AllUsed:
    """What was used of one model's bounds."""

    #: of each request, how long ago that was, and its tokens; the oldest first
    recent: list[tuple[float, int]]
    day_requests: int
    day_tokens: int
    blocked_s: float
    blocked_why: str


def _since(booking: Booking) -> float:
    return booking.since if booking.has_arrived else math.inf


def _age_s(booking: Booking, now: float) -> float:
    """Return for how long a request counts already; none, while it may be under way."""
    return max(0.0, now - booking.since) if booking.has_arrived else 0.0


def _left_s(kept: ledger.KeptUse, at: float) -> float:
    """Return for how long a block of a file holds: no longer than one is ever written down for.

    Of a clock that was years ahead and was set right nothing stays for years.
    """
    return min(kept.blocked_until_at - at, KEPT_BLOCK_S)


def _kept_until_at(at: float, left_s: float) -> float:
    """Return until when a block holds after a restart, which asks anew what is for good."""
    return at + left_s if 0 < left_s <= KEPT_BLOCK_S else 0.0


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
