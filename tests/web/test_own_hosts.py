"""Which hosts are ours, as addresses come and go."""

from __future__ import annotations

import pytest

from d8mesh.web import own_hosts
from d8mesh.web.own_hosts import OwnHosts


def test_an_address_that_this_machine_just_got_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"localhost"}
    monkeypatch.setattr(own_hosts, "own_names", lambda: frozenset(names))
    monkeypatch.setattr(own_hosts, "NAMES_AGAIN_S", 0.0)
    ours = OwnHosts(["pool.lan"])
    assert "localhost" in ours
    assert "pool.lan" in ours
    assert "10.7.7.7" not in ours
    names.add("10.7.7.7")
    assert "10.7.7.7" in ours


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
