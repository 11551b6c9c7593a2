"""Peers that send what is not allowed: a bucket of strikes for each key, and a ban when it is full.

Only that key is banned, never an address or a network, and for minutes by the steady clock: no
change of the wall clock, and no restart, makes a ban longer.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

#: Strikes that a bucket takes at once, and how fast it empties: a node that is refused and tries
#: again every few seconds, as ours do, never fills it.
BURST_STRIKES: Final = 20.0
STRIKES_PER_S: Final = 0.5
#: What a message without a session counts: after a restart of the broker a worker may send all
#: that its queue holds, a thousand messages, before it hears that it has to say HELLO.
UNKNOWN_STRIKE: Final = 0.004
#: How long a ban lasts.
BAN_S: Final = 180.0
#: Keys whose strikes, and whose bans, are remembered: those of the longest ago go first.
MAX_STRIKERS: Final = 4096


class _Bucket(NamedTuple):
    level: float
    at: float


class Strikes:
    """The strikes of all keys."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[bytes, _Bucket] = OrderedDict()
        #: key -> until when it is banned (monotonic seconds), the oldest ban first
        self.banned: OrderedDict[bytes, float] = OrderedDict()

    def add(self, key: bytes, now: float, weight: float = 1.0) -> bool:
        """Count a strike; return whether the key is banned by it."""
        if key in self.banned:
            return False
        bucket = self._buckets.pop(key, _Bucket(0.0, now))
        left = max(0.0, bucket.level - max(0.0, now - bucket.at) * STRIKES_PER_S)
        if left + weight > BURST_STRIKES:
            self.banned[key] = now + BAN_S
            if len(self.banned) > MAX_STRIKERS:
                self.banned.popitem(last=False)
            return True
        self._buckets[key] = _Bucket(left + weight, now)
        if len(self._buckets) > MAX_STRIKERS:
            self._buckets.popitem(last=False)
        return False

    def expire(self, now: float) -> bool:
        """Lift the bans whose time is over; return whether there were any."""
        over = [key for key, until in self.banned.items() if until <= now]
        for key in over:
            del self.banned[key]
        return bool(over)

    def pardon(self, key: bytes) -> bool:
        """Forget what a key has done; return whether it was banned."""
        self._buckets.pop(key, None)
        return self.banned.pop(key, None) is not None
