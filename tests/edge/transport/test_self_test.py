"""An orchestrator does not come up on an installation that lets everybody in."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.edge.transport import self_test, sockets, zap
from d8mesh.edge.transport.self_test import prove
from d8mesh.edge.transport.sockets import RouterEndpoint
from d8mesh.errors import D8Error
from tests.keyed import SERVER, admit


def test_an_installation_that_works_passes() -> None:
    prove(SERVER)


def test_a_handler_that_lets_everybody_in_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def guard(context: Any, gate: zap.Gate, **given: Any) -> None:
        zap.guard(context, admit, **given)

    monkeypatch.setattr(self_test, "PROOF_S", 0.5)
    monkeypatch.setattr(sockets, "guard", guard)
    with pytest.raises(D8Error, match="who is not admitted is not cut off"):
        prove(SERVER)


def test_a_socket_without_encryption_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unkeyed(*where: Any, keys: object, **given: Any) -> RouterEndpoint:
        return RouterEndpoint(*where, keys=None, **given)

    monkeypatch.setattr(self_test, "RouterEndpoint", unkeyed)
    monkeypatch.setattr(self_test, "PROOF_S", 0.5)
    with pytest.raises(D8Error, match="who speaks without encryption is not cut off"):
        prove(SERVER)


def test_where_nobody_is_heard_it_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def guard(context: Any, gate: zap.Gate, **given: Any) -> None:
        zap.guard(context, lambda address, key: 1 / 0, **given)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(self_test, "PROOF_S", 0.5)
    monkeypatch.setattr(sockets, "guard", guard)
    with pytest.raises(D8Error, match=r"who is let in is not asked about"):
        prove(SERVER)
