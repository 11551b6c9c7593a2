"""What accounts with services in the cloud allow, and what of that is used.

A bound for a minute holds for any sixty seconds, counted over all workers that use the account. A
request counts from the moment it is placed; once its worker has told of it, as that tells it. What
workers tell covers other orchestrators, and what was before our start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from d8mesh.core.broker.standings import BudgetLeft
from d8mesh.core.protocol.messages import Budget

MINUTE_S: Final = 60.0
#: A minute is taken for so much longer: between the placing of a request and its arrival at the
#: service lies the way there, of which we know only that it is short; from where its worker told
#: that it was sent, less.
BUDGET_MARGIN_S: Final = 3.0
SENT_MARGIN_S: Final = 0.5
#: Nothing is sent so shortly after an account is heard of first: after a start of the orchestrator
#: other workers that used it may not be back yet.
SETTLE_S: Final = 3.0


@dataclass(slots=True, eq=False)
class _Share:
    """What one worker has used: as it told, and what we placed with it since.

    Both are when each request counts no more (monotonic), and its tokens.
    """

    told: Budget
    told_since: float
    recent: list[tuple[float, int]]
    #: it does not tell of the account any more: what it has used counts, what it said does not
    is_gone: bool = False
    placed: deque[tuple[float, int]] = field(default_factory=deque)

    def tell(self, budget: Budget, now: float) -> None:
        """Take in what the worker tells now: of what we placed that is what was sent meanwhile."""
        before = len([until for until, _ in self.recent if until - SENT_MARGIN_S > now])
        if budget.day_requests or self.told.day_requests:
            sent = budget.day_requests - self.told.day_requests
            sent = sent if sent >= 0 else budget.day_requests  # a new day has begun
        else:
            sent = len(budget.recent) - before
        for _ in range(min(sent, len(self.placed))):
            self.placed.popleft()
        self.told, self.told_since, self.is_gone = budget, now, False
        self.recent = _recent(budget, now)

    def used(self, now: float) -> list[tuple[float, int]]:
        """Return what counts of the last minute."""
        return [each for each in (*self.recent, *self.placed) if each[0] > now]

    def day(self, now: float) -> tuple[int, int]:
        """Return requests and tokens since the day of the account began."""
        is_over = now >= self.told_since + self.told.day_left_s
        told = (0, 0) if is_over else (self.told.day_requests, self.told.day_tokens)
        later = [tokens for until, tokens in self.placed if until > now]
        return (told[0] + len(later), told[1] + sum(later))


def _recent(budget: Budget, now: float) -> list[tuple[float, int]]:
    return [(now - ago_s + MINUTE_S + SENT_MARGIN_S, tokens) for ago_s, tokens in budget.recent]


class BudgetBook:
    """The budget of one model at one account, over all workers."""

    def __init__(self) -> None:
        self._shares: dict[str, _Share] = {}
        self._known_since: float | None = None

    def tell(self, worker_id: str, budget: Budget, now: float) -> None:
        """Take in what a worker tells of the account."""
        if self._known_since is None:
            self._known_since = now
        share = self._shares.get(worker_id)
        if share is None:
            self._shares[worker_id] = _Share(budget, now, _recent(budget, now))
        else:
            share.tell(budget, now)

    def leave(self, worker_id: str) -> None:
        """A worker tells of the account no more."""
        self._shares[worker_id].is_gone = True

    def is_needed(self, now: float) -> bool:
        """Forget who has gone and used nothing that counts; return whether anybody is left."""
        self._shares = {
            name: share
            for name, share in self._shares.items()
            if not share.is_gone or share.used(now) or any(share.day(now))
        }
        return bool(self._shares)

    def place(self, worker_id: str, tokens: int, now: float) -> None:
        """Count a request that is placed now."""
        share = self._shares.get(worker_id)
        if share is None:
            share = self._shares[worker_id] = _Share(Budget(), now, [])
        while share.placed and share.placed[0][0] <= now:
            share.placed.popleft()
        share.placed.append((now + MINUTE_S + BUDGET_MARGIN_S, tokens))

    def fits(self, tokens: int) -> bool:
        """Return whether a request of so many tokens can ever go there."""
        bound = _least(told.minute_tokens for told in self._told())
        return not bound or tokens <= bound

    def free_in_s(self, tokens: int, now: float) -> float:
        """Return in how many seconds a request may go there, 0 for now."""
        shares, waits = self._shares.values(), [0.0]
        if self._known_since is not None:
            waits.append(self._known_since + SETTLE_S - now)
        waits.append(self._blocked_s(now))
        used = sorted(each for share in shares for each in share.used(now))
        most = _least(told.minute_requests for told in self._told())
        if most and len(used) >= most:
            waits.append(used[len(used) - most][0] - now)
        room = _least(told.minute_tokens for told in self._told())
        over = sum(each for _, each in used) + tokens - room
        for until, each in used if room else ():
            if over <= 0:
                break
            over -= each
            waits.append(until - now)
        return max(*waits, self._day_wait_s(tokens, now), 0.0)

    def _day_wait_s(self, tokens: int, now: float) -> float:
        shares = self._shares.values()
        days = [share.day(now) for share in shares]
        requests = _least(told.day_requests_bound for told in self._told())
        bound = _least(told.day_tokens_bound for told in self._told())
        is_over = (requests and sum(day[0] for day in days) >= requests) or (
            bound and sum(day[1] for day in days) + tokens > bound
        )
        if not is_over:
            return 0.0
        left = [share.told_since + share.told.day_left_s - now for share in shares]
        return max([each for each in left if each > 0.0], default=MINUTE_S)

    def why(self, now: float) -> str:
        """Return why nothing may be sent now, as a worker told it; empty: nobody said."""
        for share in self._here():
            if share.told_since + share.told.blocked_s > now and share.told.blocked_why:
                return share.told.blocked_why
        return ""

    def _here(self) -> list[_Share]:
        return [share for share in self._shares.values() if not share.is_gone]

    def _told(self) -> list[Budget]:
        return [share.told for share in self._here()]

    def _blocked_s(self, now: float) -> float:
        ends = (share.told_since + share.told.blocked_s for share in self._here())
        return max(0.0, max(ends, default=now) - now)

    def left(self, now: float) -> BudgetLeft:
        """Return what is left of each bound."""
        shares = list(self._shares.values())
        used = [each for share in shares for each in share.used(now)]
        days = [share.day(now) for share in shares]
        told = self._told()
        return BudgetLeft(
            minute_requests=_rest((each.minute_requests for each in told), len(used)),
            minute_tokens=_rest(
                (each.minute_tokens for each in told), sum(tokens for _, tokens in used)
            ),
            day_requests=_rest(
                (each.day_requests_bound for each in told), sum(day[0] for day in days)
            ),
            day_tokens=_rest((each.day_tokens_bound for each in told), sum(day[1] for day in days)),
            blocked_s=self._blocked_s(now),
            blocked_why=self.why(now),
        )


def _least(bounds: Iterable[int]) -> int:
    """Return the smallest bound, 0 for none."""
    return min((bound for bound in bounds if bound), default=0)


def _rest(bounds: Iterable[int], used: int) -> int | None:
    bound = _least(bounds)
    return max(0, bound - used) if bound else None
