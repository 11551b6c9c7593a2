"""A key stands for one answer, and not for a failure for ever."""

from __future__ import annotations

import pytest

from d8mesh.doors.llm import keys
from d8mesh.doors.llm.asked import Caller
from d8mesh.doors.llm.keys import RequestKeys
from d8mesh.nodes.client.groups import MAX_KEY_CHARS


def who(key: str, door: str = "openai") -> Caller:
    return Caller(door=door, address="a", key=key)


def test_keys_of_doors_are_apart_and_fit() -> None:
    known = RequestKeys()
    assert known.of(who("")) == ""
    assert known.of(who("k")) == known.of(who("k")) != known.of(who("k", "ollama"))
    long = "k" * MAX_KEY_CHARS
    assert len({known.of(who(long)), known.of(who(long[1:])), known.of(who(long, "x"))}) == 3
    assert len(known.of(who(long))) <= MAX_KEY_CHARS


def test_after_a_failure_the_same_key_is_another_once_for_all_who_were_told() -> None:
    known, caller = RequestKeys(), who("k")
    first = known.of(caller)
    known.failed(caller, first)
    known.failed(caller, first)  # who listened to the same task
    second = known.of(caller)
    assert second != first
    assert known.of(caller) == second
    known.failed(caller, second)
    assert known.of(caller) not in (first, second)
    assert len(known.of(who("k" * MAX_KEY_CHARS))) <= MAX_KEY_CHARS


def test_those_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_FAILED_KEYS", 2)
    known = RequestKeys()
    plain = [known.of(who(str(n))) for n in range(3)]
    for n in range(3):
        known.failed(who(str(n)), plain[n])
    assert [known.of(who(str(n))) == plain[n] for n in range(3)] == [True, False, False]
