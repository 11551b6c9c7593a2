"""When the day ends in which a provider counts requests."""

from __future__ import annotations

from calendar import timegm
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

#: Seconds of a day.
DAY_S: Final = 86_400
_HOUR_S: Final = 3600
#: Pacific time is so far behind UTC in winter; in summer an hour less.
_PACIFIC_S: Final = 8 * _HOUR_S


class Day(StrEnum):
    """Where midnight is meant."""

    UTC = "utc"
    PACIFIC = "pacific"  #: California, with its summer time


def day_end_at(day: Day, at: float) -> float:
    """Return the first midnight after `at`, both in Unix seconds."""
    if day is Day.UTC:
        return (at // DAY_S + 1) * DAY_S
    behind_s = _behind_s(at)
    midnight = ((at - behind_s) // DAY_S + 1) * DAY_S  # as if the clock there were UTC
    return midnight + _behind_s(midnight + behind_s)


def _behind_s(at: float) -> int:
    """Return how far Pacific time is behind UTC.

    No data base of time zones: Windows has none. Source: 15 U.S.C. 260a: summer time from the
    second Sunday of March to the first one of November, at 2 o'clock of the clock there.
    """
    year = datetime.fromtimestamp(at, UTC).year
    begins = timegm((year, 3, _sunday(year, 3, 2), 10, 0, 0))
    ends = timegm((year, 11, _sunday(year, 11, 1), 9, 0, 0))
    return _PACIFIC_S - (_HOUR_S if begins <= at < ends else 0)


def _sunday(year: int, month: int, number: int) -> int:
    """Return on which day of a month its first, second, … Sunday is."""
    first = datetime(year, month, 1, tzinfo=UTC).weekday()
    return 1 + (6 - first) % 7 + 7 * (number - 1)
