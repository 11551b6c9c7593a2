"""Strikes fill a bucket, a full one bans its key, and time alone ends a ban."""

from __future__ import annotations

import pytest

from d8mesh.core.broker.strikes import (
    BAN_S,
    BURST_STRIKES,
    MAX_STRIKERS,
    STRIKES_PER_S,
    UNKNOWN_STRIKE,
    Strikes,
)

K = bytes(32)


def key(n: int) -> bytes:
    return n.to_bytes(32, "big")


def test_a_flood_bans_its_key_and_no_other() -> None:
    strikes = Strikes()
    banned = [strikes.add(K, 1.0) for _ in range(int(BURST_STRIKES) + 1)]
    assert banned == [False] * int(BURST_STRIKES) + [True]
    assert list(strikes.banned) == [K]
    assert not strikes.add(key(1), 1.0)


@pytest.mark.parametrize("pause_s", [1.0 / STRIKES_PER_S, 3.0, 30.0])
def test_who_tries_again_at_its_pace_is_never_banned(pause_s: float) -> None:
    strikes = Strikes()
    assert not any(strikes.add(K, n * pause_s) for n in range(1000))


def test_what_a_queue_held_at_a_restart_of_the_broker_bans_nobody() -> None:
    strikes = Strikes()
    assert not any(strikes.add(K, 1.0, UNKNOWN_STRIKE) for _ in range(2000))


def test_a_flood_without_a_hello_is_banned_too() -> None:
    strikes = Strikes()
    assert any(strikes.add(K, 1.0 + n / 10_000, UNKNOWN_STRIKE) for n in range(10_000))


def test_a_ban_ends_by_the_steady_clock() -> None:
    strikes = Strikes()
    while not strikes.add(K, 5.0):
        pass
    assert not strikes.expire(5.0 + BAN_S - 0.1)
    assert strikes.expire(5.0 + BAN_S)
    assert not strikes.banned
    assert not strikes.add(K, 5.0 + BAN_S)


def test_a_clock_that_stands_empties_no_bucket() -> None:
    strikes = Strikes()
    for _ in range(4):
        assert not strikes.add(K, 9.0, BURST_STRIKES / 4)
    assert strikes.add(K, 9.0)


def test_a_pardon_forgets_all() -> None:
    strikes = Strikes()
    while not strikes.add(K, 5.0):
        pass
    assert strikes.pardon(K)
    assert not strikes.pardon(K)
    assert not strikes.add(K, 5.0)


def test_what_is_remembered_is_bounded() -> None:
    strikes = Strikes()
    for n in range(MAX_STRIKERS + 10):
        strikes.add(key(n), 1.0)
        strikes.add(key(n), 1.0, BURST_STRIKES)
    assert len(strikes.banned) == MAX_STRIKERS
    assert key(0) not in strikes.banned
    for n in range(MAX_STRIKERS + 10):
        strikes.add(key(10**6 + n), 1.0)
    assert len(strikes._buckets) == MAX_STRIKERS
