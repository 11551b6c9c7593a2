"""What an account allows: never more than that in any minute or day, over restarts too."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.backends.accounts import service_id_of
from d8mesh.backends.accounts.account import (
    FOR_GOOD_S,
    KEPT_BLOCK_S,
    LATE_S,
    MAX_ACCOUNT_MODELS,
    MINUTE_S,
    Account,
    Booking,
    Clocks,
)
from d8mesh.backends.accounts.bounds import FREE_TIERS, Bounds, bounds_of, set_bounds
from d8mesh.backends.accounts.days import DAY_S, Day, day_end_at
from d8mesh.core.broker.budgets import BUDGET_MARGIN_S, SENT_MARGIN_S
from d8mesh.errors import BackendError, BackendLimitError, BackendUnavailableError

#: A Sunday in November, 12:00 UTC.
NOON_AT = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()
SPAN_S = MINUTE_S + LATE_S


class Hands:
    """Two clocks that a test turns."""

    def __init__(self, at: float = NOON_AT) -> None:
        self.now, self.at = 1000.0, at

    def turn(self, seconds: float) -> None:
        self.now += seconds
        self.at += seconds

    @property
    def clocks(self) -> Clocks:
        return Clocks(now=lambda: self.now, at=lambda: self.at)


def account_of(hands: Hands, *limits: tuple[str, int], day: Day = Day.UTC) -> Account:
    rows = tuple(("groq", name, number) for name, number in limits)
    return Account("groq", "groq-0123456789ab", limits=rows, day=day, clocks=hands.clocks)


def taken(account: Account, tokens: int = 1, *, model: str = "m") -> Booking | None:
    """Send a request that arrives at once; None: it may not be sent."""
    try:
        booking = account.begin(model, tokens)
    except BackendLimitError:
        return None
    account.arrived(booking)
    return booking


def test_a_request_counts_from_when_the_service_has_it_for_certain() -> None:
    hands = Hands()
    account = account_of(hands, ("minute_requests", 1))
    booking = account.begin("m", 1)
    hands.turn(SPAN_S + 5)  # a slow connection
    assert account.budget("m").recent == [(0.0, 1)]
    assert taken(account) is None
    account.arrived(booking)
    hands.turn(SPAN_S - 1)
    assert taken(account) is None
    hands.turn(1)
    assert taken(account)


# --- any minute, any day


@given(
    bound=st.integers(1, 8),
    waits=st.lists(st.floats(0, 40, allow_nan=False), min_size=1, max_size=120),
)
def test_no_minute_has_more_requests_than_allowed(bound: int, waits: list[float]) -> None:
    hands = Hands()
    account = account_of(hands, ("minute_requests", bound), ("day_requests", 0))
    sent: list[float] = []
    for wait_s in waits:
        hands.turn(wait_s)
        if taken(account):
            sent.append(hands.now)
    for first in sent:
        assert sum(first <= each < first + MINUTE_S for each in sent) <= bound
    assert len(sent) >= min(bound, len(waits))


@given(
    rows=st.lists(
        st.tuples(st.floats(0, 30, allow_nan=False), st.integers(1, 120)), min_size=1, max_size=60
    )
)
def test_no_minute_has_more_tokens_than_allowed(rows: list[tuple[float, int]]) -> None:
    hands, bound = Hands(), 100
    account = account_of(hands, ("minute_tokens", bound), ("minute_requests", 0))
    sent: list[tuple[float, int]] = []
    for wait_s, tokens in rows:
        hands.turn(wait_s)
        booking = taken(account, tokens)
        if booking is not None:
            sent.append((hands.now, booking.tokens))
    for first, _ in sent:
        assert sum(n for at, n in sent if first <= at < first + MINUTE_S) <= bound


def test_many_threads_share_the_bound() -> None:
    account = account_of(Hands(), ("minute_requests", 7))
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(taken(account) is not None)) for _ in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found) == 7


def test_what_a_request_really_took_makes_room_for_others() -> None:
    hands = Hands()
    account = account_of(hands, ("minute_tokens", 100))
    booking = taken(account, 90)
    assert booking is not None
    assert taken(account, 20) is None
    account.settle(booking, 30)
    assert taken(account, 20) is not None


def test_a_refusal_says_why_and_for_how_long() -> None:
    hands = Hands()
    account = account_of(hands, ("minute_requests", 1))
    taken(account)
    hands.turn(12)
    with pytest.raises(BackendLimitError, match="all 1 requests of this minute") as caught:
        account.begin("m", 1)
    assert isinstance(caught.value, BackendUnavailableError)  # no attempt is burnt
    assert "48 s" in str(caught.value)
    hands.turn(SPAN_S - 12)
    assert taken(account)


def test_the_day_ends_at_its_providers_midnight() -> None:
    hands = Hands()
    account = account_of(hands, ("day_requests", 2), ("minute_requests", 0), day=Day.PACIFIC)
    assert [taken(account) is not None for _ in range(3)] == [True, True, False]
    hands.turn(19 * 3600)  # 07:00 UTC: 23:00 in California
    assert taken(account) is None
    hands.turn(3600)
    assert taken(account) is not None


def test_the_tokens_of_a_day_are_bounded_too() -> None:
    hands = Hands()
    account = account_of(hands, ("day_tokens", 100), ("minute_tokens", 0))
    assert taken(account, 60)
    hands.turn(3600)
    assert taken(account, 60) is None
    assert taken(account, 40)


def test_models_have_bounds_of_their_own() -> None:
    account = account_of(Hands(), ("minute_requests", 1))
    assert taken(account, model="a")
    assert taken(account, model="b")
    assert taken(account, model="a") is None


def test_what_can_never_fit_is_a_failure_and_no_wait() -> None:
    account = account_of(Hands(), ("minute_tokens", 100))
    with pytest.raises(BackendError, match="can never fit") as caught:
        account.begin("m", 151)
    assert not isinstance(caught.value, BackendUnavailableError)


def test_what_may_fit_is_sent_alone() -> None:
    hands = Hands()
    account = account_of(hands, ("minute_tokens", 100))
    booking = taken(account, 140)  # an estimate
    assert booking is not None
    assert booking.tokens == 100
    assert taken(account, 1) is None


@pytest.mark.skipif(
    "America/Los_Angeles" not in available_timezones(), reason="no data base of time zones here"
)
@given(at=st.integers(1_700_000_000, 2_200_000_000))
def test_midnight_in_california_is_that_of_the_time_zone(at: int) -> None:
    end = datetime.fromtimestamp(day_end_at(Day.PACIFIC, at), ZoneInfo("America/Los_Angeles"))
    assert (end.hour, end.minute, end.second) == (0, 0, 0)
    assert 0 < end.timestamp() - at <= DAY_S + 3600
    begin = datetime.fromtimestamp(at, ZoneInfo("America/Los_Angeles"))
    assert (end.date() - begin.date()).days == 1


def test_midnight_of_utc_is_the_next_one() -> None:
    assert day_end_at(Day.UTC, NOON_AT) - NOON_AT == 12 * 3600
    assert day_end_at(Day.UTC, NOON_AT + 12 * 3600) - NOON_AT == 36 * 3600


def test_what_an_orchestrator_places_is_not_given_back_for_the_clocks_sake() -> None:
    assert LATE_S < SENT_MARGIN_S < BUDGET_MARGIN_S


# --- blocks


def test_nothing_is_sent_while_the_service_wants_none() -> None:
    hands = Hands()
    account = account_of(hands)
    account.block("m", 30.0, "it said so")
    account.block("m", 5.0, "a shorter one changes nothing")
    with pytest.raises(BackendLimitError, match="it said so"):
        account.begin("m", 1)
    budget = account.budget("m")
    assert (budget.blocked_s, budget.blocked_why) == (30.0, "it said so")
    hands.turn(30)
    assert taken(account)
    assert account.budget("m").blocked_why == ""


def test_an_overloaded_service_is_left_alone_for_longer_each_time_until_it_answers() -> None:
    hands = Hands()
    account = account_of(hands, ("minute_requests", 0))
    waits = []
    for _ in range(3):
        account.block_shortly("m", "busy")
        waits.append(account.budget("m").blocked_s)
        hands.turn(waits[-1])
    assert waits == [5.0, 10.0, 20.0]
    booking = taken(account)
    assert booking is not None
    account.settle(booking, 10)
    account.block_shortly("m", "busy")
    assert account.budget("m").blocked_s == 5.0


def test_a_day_that_is_used_up_lasts_to_its_end() -> None:
    hands = Hands()
    account = account_of(hands, day=Day.PACIFIC)
    account.block_today("m", "used up")
    assert account.budget("m").blocked_s == 20 * 3600


# --- what is told


def test_a_budget_tells_what_was_sent_and_how_long_ago() -> None:
    hands = Hands()
    account = account_of(hands, ("minute_requests", 9), ("day_tokens", 500))
    taken(account, 10)
    hands.turn(15)
    taken(account, 20)
    budget = account.budget("m")
    assert budget.recent == [(15.0, 10), (0.0, 20)]
    assert (budget.minute_requests, budget.day_tokens_bound) == (9, 500)
    assert (budget.day_requests, budget.day_tokens) == (2, 30)
    assert budget.day_left_s == 12 * 3600 - 15
    hands.turn(SPAN_S - 15)
    assert account.budget("m").recent == [(SPAN_S - 15, 20)]


def test_bounds_by_hand_go_before_those_that_are_learnt_and_these_before_the_free_tier() -> None:
    account = account_of(Hands(), ("minute_requests", 7))
    before = account.bounds("openai/gpt-oss-20b")
    assert before == Bounds(
        minute_requests=7, day_requests=1000, minute_tokens=8000, day_tokens=200_000
    )
    account.learn("openai/gpt-oss-20b", {"minute_requests": 99, "day_requests": 5, "odd": 3})
    after = account.bounds("openai/gpt-oss-20b")
    assert (after.minute_requests, after.day_requests) == (7, 5)


def test_each_model_of_each_provider_has_cautious_bounds() -> None:
    for provider in ("groq", "gemini"):
        for model in ("unheard-of", "gpt-oss-20b", "gemini-2.5-flash-lite"):
            bounds = bounds_of(provider, model, given={}, learnt={})
            assert 0 < bounds.minute_requests <= 60
            assert 0 < bounds.day_requests <= 1000
    assert bounds_of("else", "m", given={}, learnt={}) == Bounds()
    assert FREE_TIERS


def test_a_row_of_a_model_goes_before_that_of_its_provider() -> None:
    limits = (("groq", "day_requests", 9), ("groq/m", "day_requests", 3), ("gemini", "x", 1))
    assert set_bounds(limits, "groq", "m") == {"day_requests": 3}
    assert set_bounds(limits, "groq", "other") == {"day_requests": 9}


def test_an_id_names_the_key_and_does_not_tell_it() -> None:
    assert service_id_of("groq", "gsk_secret") == service_id_of("groq", "gsk_secret")
    assert service_id_of("groq", "gsk_secret") != service_id_of("groq", "gsk_other")
    assert "secret" not in service_id_of("groq", "gsk_secret")
    assert service_id_of("groq", "gsk_secret").startswith("groq-")


# --- restarts


def file_in(data: Path) -> Path:
    """Return where a worker keeps its account: in a folder of its own, beside those of others."""
    (data / "1").mkdir(exist_ok=True)
    return data / "1" / "account.json"


def restarted(hands: Hands, path: Path, *limits: tuple[str, int]) -> Account:
    account = account_of(hands, *limits)
    account.keep_in(path)
    return account


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    hands, path = Hands(), file_in(tmp_path)
    limits = (("minute_requests", 2), ("day_requests", 3))
    first = restarted(hands, path, *limits)
    taken(first, 10)
    taken(first, 20)
    first.learn("m", {"day_tokens": 99})
    first.block("other", 3600.0, "it said so")
    hands.turn(10)
    hands.now -= 700  # monotonic clocks begin anew with each start of a machine
    second = restarted(hands, path, *limits)
    assert taken(second) is None
    assert second.budget("m").recent == [(10.0, 10), (10.0, 20)]
    assert second.budget("m").day_tokens_bound == 99
    assert second.budget("other").blocked_s == pytest.approx(3590.0)
    hands.turn(SPAN_S)
    assert taken(second)
    hands.turn(SPAN_S)
    assert taken(restarted(hands, path, *limits)) is None  # of the day


def test_a_day_that_is_over_is_over_after_a_restart_too(tmp_path: Path) -> None:
    hands, path = Hands(), file_in(tmp_path)
    taken(restarted(hands, path, ("day_requests", 1)))
    hands.turn(DAY_S)
    assert taken(restarted(hands, path, ("day_requests", 1)))


def test_what_was_used_before_the_folder_was_known_counts(tmp_path: Path) -> None:
    hands, path = Hands(), file_in(tmp_path)
    taken(restarted(hands, path))
    account = account_of(hands)
    taken(account)
    account.keep_in(path)
    assert account.budget("m").day_requests == 2
    assert restarted(hands, path).budget("m").day_requests == 2


def test_what_is_for_good_is_asked_again_after_a_restart(tmp_path: Path) -> None:
    hands, path = Hands(), file_in(tmp_path)
    restarted(hands, path).block("m", FOR_GOOD_S, "not in the tier")
    assert restarted(hands, path).budget("m").blocked_s == 0


def test_a_clock_that_was_set_back_makes_nothing_younger_than_now(tmp_path: Path) -> None:
    hands, path = Hands(), file_in(tmp_path)
    taken(restarted(hands, path))
    hands.at -= 7200
    assert restarted(hands, path).budget("m").recent == [(0.0, 1)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"models": {}, "version": 2}',
        b'{"models": {"m": {"day_requests": -1}}}',
        b'{"models": {"m": {"recent": [[1]]}}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_put_aside_and_told_and_begun_anew(
    tmp_path: Path, content: bytes
) -> None:
    hands, path = Hands(), file_in(tmp_path)
    path.write_bytes(content)
    account = restarted(hands, path)
    assert "begun anew" in account.notice
    assert path.with_name("account.json.damaged").read_bytes() == content
    assert taken(account)
    assert restarted(hands, path).budget("m").day_requests == 1


def test_a_disk_that_takes_nothing_is_told_and_stops_nothing(tmp_path: Path) -> None:
    account = restarted(Hands(), tmp_path / "missing" / "account.json")
    assert taken(account)
    assert "cannot be written down" in account.notice


def test_the_file_is_whole_at_any_moment(tmp_path: Path) -> None:
    hands, path = Hands(), file_in(tmp_path)
    account = restarted(hands, path)
    for i in range(20):
        taken(account, i)
        assert json.loads(path.read_text("utf-8"))["version"] == 1
    assert [each.name for each in path.parent.iterdir()] == ["account.json"]


def test_workers_of_one_machine_know_what_the_others_used_also_one_that_is_not_back(
    tmp_path: Path,
) -> None:
    hands, limits = Hands(), (("minute_requests", 3), ("day_requests", 4))
    paths = [tmp_path / str(i) / "account.json" for i in range(2)]
    for path in paths:
        path.parent.mkdir()
    first, second = (restarted(hands, path, *limits) for path in paths)
    assert taken(first)
    assert taken(second)
    assert taken(first)
    assert taken(second) is None
    told = second.budget("m")
    assert len(told.recent) == 1  # who adds up gets each request once
    assert told.blocked_s == SPAN_S
    assert "this minute" in told.blocked_why
    hands.turn(SPAN_S)
    assert taken(second)
    assert "of the day" in restarted(hands, paths[0], *limits).budget("m").blocked_why
    second.block("m", 9999.0, "it said so")
    with pytest.raises(BackendLimitError, match="it said so"):
        first.begin("m", 1)
    paths[1].write_bytes(b"{")
    hands.turn(DAY_S)
    assert taken(first)


def test_names_that_are_made_up_fill_no_memory() -> None:
    account = account_of(Hands())
    for i in range(MAX_ACCOUNT_MODELS + 50):
        account.learn(f"m{i}", {"day_requests": 1})
    assert account.bounds("m0").day_requests != 1
    assert account.bounds(f"m{MAX_ACCOUNT_MODELS + 49}").day_requests == 1


def test_a_clock_that_was_years_ahead_blocks_nothing_for_years(tmp_path: Path) -> None:
    ahead, right = Hands(NOON_AT + 1000 * DAY_S), Hands()
    path = tmp_path / "w" / "a.json"
    path.parent.mkdir()
    first = account_of(ahead, ("day_requests", 1))
    first.keep_in(path)
    assert taken(first) is not None
    first.block_today("other", "the day's quota is used up")
    second = account_of(right, ("day_requests", 1))
    second.keep_in(path)
    beside = account_of(right, ("day_requests", 1))
    beside.keep_in(tmp_path / "beside" / "a.json")
    for account in (second, beside):
        for model in ("m", "other"):
            assert account.budget(model).blocked_s <= KEPT_BLOCK_S
    right.turn(KEPT_BLOCK_S + 1)
    assert taken(second) is not None
    ahead.at = NOON_AT  # and it is set right while the worker runs
    assert first.budget("m").day_left_s <= DAY_S


def test_the_block_of_a_day_of_25_hours_is_known_after_a_restart(tmp_path: Path) -> None:
    midnight = datetime(2026, 11, 1, 7, 0, 30, tzinfo=UTC).timestamp()  # in California
    hands = Hands(midnight)
    for account in (account_of(hands, day=Day.PACIFIC), account_of(hands, day=Day.PACIFIC)):
        account.keep_in(tmp_path / "a.json")
        account.block_today("m", "the day's quota is used up")
        assert 24.5 * 3600 < account.budget("m").blocked_s < 25 * 3600
    third = account_of(hands, day=Day.PACIFIC)
    third.keep_in(tmp_path / "a.json")
    assert third.budget("m").blocked_s > 24.5 * 3600
