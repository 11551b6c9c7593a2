"""A route says where it leads and through what."""

from __future__ import annotations

import pytest

from d8mesh.core.protocol.route import Route
from d8mesh.errors import ConfigError


@pytest.mark.parametrize(
    ("endpoint", "address", "is_http"),
    [
        ("tcp://10.0.0.1:7010", ("10.0.0.1", 7010), False),
        ("tcp://[fd00::1]:7010", ("fd00::1", 7010), False),
        ("http://boss.local:7001", ("boss.local", 7001), True),
        ("http://boss.local", ("boss.local", 80), True),
        ("tcp://http.local:7010", ("http.local", 7010), False),
        ("https://boss.local", ("boss.local", 443), True),
    ],
)
def test_an_endpoint_says_where_to_connect(
    endpoint: str, address: tuple[str, int], is_http: bool
) -> None:
    route = Route(endpoint)
    assert (route.address, route.is_http) == (address, is_http)
    assert (route.broker_id, route.server_key) == ("", None)


def test_what_a_person_writes_is_read_with_its_key() -> None:
    place = "tcp://[fd00::1]:7010"
    assert Route.given(f"{place}?key=" + "6b" * 32) == Route(place, "", b"k" * 32)
    assert Route.given("10.0.0.1:7010") == Route("tcp://10.0.0.1:7010")
    assert Route.given("https://boss.local/") == Route("https://boss.local/")
    with pytest.raises(ConfigError):
        Route.given("tcp://10.0.0.1")
