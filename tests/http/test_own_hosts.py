"""Which hosts are ours, as addresses come and go."""

from __future__ import annotations

import pytest

from d8mesh.http import own_hosts
from d8mesh.http.own_hosts import OwnHosts


def test_an_address_that_this_machine_just_got_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"localhost"}
    monkeypatch.setattr(own_hosts, "own_names", lambda: frozenset(names))
    ours = OwnHosts(["pool.lan"])
    assert "localhost" in ours
    assert "pool.lan" in ours
    assert "8.7.7.7" not in ours
    names.update(("8.7.7.7", "2001:db8::7"))
    assert "8.7.7.7" in ours
    assert "2001:db8::7" in ours
    assert "8.7.7.8" not in ours


def test_strangers_do_not_make_us_look_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def look() -> frozenset[str]:
        looks.append(1)
        return frozenset({"localhost"})

    monkeypatch.setattr(own_hosts, "own_names", look)
    ours = OwnHosts([])
    for _ in range(100):
        assert "evil.example" not in ours
    assert len(looks) <= 2
