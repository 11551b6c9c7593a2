"""What accounts with services in the cloud allow, and what of that is used.

A bound for a minute holds for any sixty seconds, counted over all workers that use the account.
What we placed is counted from the moment it is placed; what workers tell that they sent is the
better word of the two, as it knows of other orchestrators and of what was before our start. Of
what a worker told and what we placed with it the larger counts, so neither is forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from d8mesh.core.broker.standings import BudgetLeft
from d8mesh.core.protocol.messages import Budget

#: A window of this much is kept free of more than is allowed: between the placing of a request and
#: its arrival at the service lies the way there, of which we know only that it is short.
MINUTE_S: Final = 60.0
BUDGET_MARGIN_S: Final = 3.0
WINDOW_S: Final = MINUTE_S + BUDGET_MARGIN_S
#: What was placed so shortly before a worker told of itself may not be in what it told.
ON_THE_WAY_S: Final = 1.0


@dataclass(slots=True, eq=False)
class _Share:
    """What one worker has used: as it told, and as we placed it."""

    told: Budget
    told_since: float
    #: when each request was sent (monotonic), and its tokens
    recent: list[tuple[float, int]]
    placed: deque[tuple[float, int]] = field(default_factory=deque)

    def used(self, now: float) -> list[tuple[float, int]]:
        """Return what counts of the last minute."""
        since = now - WINDOW_S
        told = [each for each in self.recent if each[0] > since]
        ours = [each for each in self.placed if each[0] > since]
        later = [each for each in ours if each[0] > self.told_since - ON_THE_WAY_S]
        return max(told + later, ours, key=len)

    def day(self, now: float) -> tuple[int, int]:
        """Return requests and tokens since the day of the account began."""
        is_over = now >= self.told_since + self.told.day_left_s
        since = self.told_since + self.told.day_left_s if is_over else self.told_since
        later = [tokens for at, tokens in self.placed if at > since - ON_THE_WAY_S]
        before = (0, 0) if is_over else (self.told.day_requests, self.told.day_tokens)
        return (before[0] + len(later), before[1] + sum(later))


class BudgetBook:
    """The budget of one model at one account, over all workers."""

    def __init__(self) -> None:
        self._shares: dict[str, _Share] = {}

    def tell(self, worker_id: str, budget: Budget, now: float) -> None:
        """Take in what a worker tells of the account."""
        recent = [(now - ago_s, tokens) for ago_s, tokens in budget.recent]
        share = self._shares.get(worker_id)
        if share is None:
            self._shares[worker_id] = _Share(budget, now, recent)
        else:
            share.told, share.told_since, share.recent = budget, now, recent

    def place(self, worker_id: str, tokens: int, now: float) -> None:
        """Count a request that is placed now."""
        share = self._shares.get(worker_id)
        if share is None:
            share = self._shares[worker_id] = _Share(Budget(), now, [])
        while share.placed and share.placed[0][0] <= min(now - WINDOW_S, share.told_since):
            share.placed.popleft()
        share.placed.append((now, tokens))

    def fits(self, tokens: int) -> bool:
        """Return whether a request of so many tokens can ever go there."""
        bound = _least(share.told.minute_tokens for share in self._shares.values())
        return not bound or tokens <= bound

    def free_in_s(self, tokens: int, now: float) -> float:
        """Return in how many seconds a request may go there, 0 for now."""
        shares, waits = self._shares.values(), [0.0]
        waits += [share.told_since + share.told.blocked_s - now for share in shares]
        used = sorted(each for share in shares for each in share.used(now))
        most = _least(share.told.minute_requests for share in shares)
        if most and len(used) >= most:
            waits.append(used[len(used) - most][0] + WINDOW_S - now)
        room = _least(share.told.minute_tokens for share in shares)
        over = sum(each for _, each in used) + tokens - room
        for at, each in used if room else ():
            if over <= 0:
                break
            over -= each
            waits.append(at + WINDOW_S - now)
        return max(*waits, self._day_wait_s(tokens, now), 0.0)

    def _day_wait_s(self, tokens: int, now: float) -> float:
        shares = self._shares.values()
        days = [share.day(now) for share in shares]
        requests = _least(share.told.day_requests_bound for share in shares)
        bound = _least(share.told.day_tokens_bound for share in shares)
        is_over = (requests and sum(day[0] for day in days) >= requests) or (
            bound and sum(day[1] for day in days) + tokens > bound
        )
        if not is_over:
            return 0.0
        left = [share.told_since + share.told.day_left_s - now for share in shares]
        return max([each for each in left if each > 0.0], default=MINUTE_S)

    def why(self, now: float) -> str:
        """Return why nothing may be sent now, as a worker told it; empty: nobody said."""
        for share in self._shares.values():
            if share.told_since + share.told.blocked_s > now and share.told.blocked_why:
                return share.told.blocked_why
        return ""

    def left(self, now: float) -> BudgetLeft:
        """Return what is left of each bound."""
        shares = list(self._shares.values())
        used = [each for share in shares for each in share.used(now)]
        days = [share.day(now) for share in shares]
        blocked_s = max((s.told_since + s.told.blocked_s - now for s in shares), default=0.0)
        return BudgetLeft(
            minute_requests=_rest((s.told.minute_requests for s in shares), len(used)),
            minute_tokens=_rest(
                (s.told.minute_tokens for s in shares), sum(tokens for _, tokens in used)
            ),
            day_requests=_rest(
                (s.told.day_requests_bound for s in shares), sum(day[0] for day in days)
            ),
            day_tokens=_rest(
                (s.told.day_tokens_bound for s in shares), sum(day[1] for day in days)
            ),
            blocked_s=max(0.0, blocked_s),
            blocked_why=self.why(now),
        )


def _least(bounds: Iterable[int]) -> int:
    """Return the smallest bound, 0 for none."""
    return min((bound for bound in bounds if bound), default=0)


def _rest(bounds: Iterable[int], used: int) -> int | None:
    bound = _least(bounds)
    return max(0, bound - used) if bound else None
