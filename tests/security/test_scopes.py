"""What each scope opens, route by route, so that none is opened or closed by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from d8mesh.core.protocol.access_tokens import ADMIN_ONLY, ALL_SCOPES, TokenScope
from d8mesh.http.routes import Door, HttpRoute
from tests.doors.every_door import every_door

JOIN = {f"/api/join{each}" for each in ("", "/approve", "/revoke", "/forget")}
CHANGES = {"/api/pull", "/api/copy", "/api/create", "/api/push", "/api/delete"}
OF_WORKERS = "/api/workers/"


@pytest.fixture
def routes(tmp_path: Path) -> list[tuple[Door, HttpRoute]]:
    """All routes of all doors, without a mesh behind them."""
    return [(door, route) for door in every_door(tmp_path) for route in door.routes]


def scopes_of(door: Door, route: HttpRoute) -> frozenset[TokenScope]:
    return route.scopes or door.scopes


def test_who_may_join_and_which_models_there_are_is_changed_by_admins_alone(
    routes: list[tuple[Door, HttpRoute]],
) -> None:
    found = {route.rule for door, route in routes if scopes_of(door, route) == ADMIN_ONLY}
    assert found == JOIN | CHANGES | {"/api/blobs/<digest>"}
    always = {route.rule for _, route in routes if route.asks_always}
    assert always == JOIN


def test_every_other_route_is_for_the_scope_of_what_it_is(
    routes: list[tuple[Door, HttpRoute]],
) -> None:
    odd = []
    for door, route in routes:
        scopes = scopes_of(door, route)
        if scopes == ADMIN_ONLY:
            continue
        if route.rule in ("/health", "/openapi.json"):
            wanted = ALL_SCOPES
        elif route.rule == "/api/models":
            wanted = frozenset({TokenScope.SUBMIT, TokenScope.CHAT})
        elif route.rule == "/api/mesh/exchange":
            wanted = frozenset({TokenScope.WORK, TokenScope.LINK})
        elif route.rule.endswith("/result") or (
            route.rule.startswith(OF_WORKERS)
            and route.rule not in ("/api/workers/list", "/api/workers/stats")
        ):
            wanted = frozenset({TokenScope.WORK})
        elif route.rule.startswith(("/api/tasks", "/api/stats", OF_WORKERS)):
            wanted = frozenset({TokenScope.SUBMIT})
        else:
            wanted = frozenset({TokenScope.CHAT})
        if scopes != wanted:
            odd.append((route.method, route.rule, scopes))
    assert odd == []


def test_only_health_tells_strangers_anything(routes: list[tuple[Door, HttpRoute]]) -> None:
    assert [route.rule for _, route in routes if route.known_to_all is not None] == ["/health"]
