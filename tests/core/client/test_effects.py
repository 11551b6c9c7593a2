"""What the client's brain asks for: plain values."""

from __future__ import annotations

import pytest

from d8mesh.core.client.effects import Connected, Lost


def test_effects_are_values_that_stay_as_they_are() -> None:
    assert Connected("orch-1") == Connected("orch-1")
    assert Lost("cut").pause_s == 0.0
    with pytest.raises(AttributeError):
        Lost("cut").why = "else"  # type: ignore[misc]
