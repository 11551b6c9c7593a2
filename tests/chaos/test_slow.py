"""Slow peers slow only themselves: what healthy ones get done beside them is reported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.chaos.slow_check import measure

if not sys.platform.startswith("linux"):
    pytest.skip("processes are looked up in /proc", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_healthy_clients_get_every_answer_beside_slow_peers(tmp_path: Path) -> None:
    found = measure(tmp_path, seconds=1.0, rounds=1)
    print(json.dumps(found))  # the ratio is for people: on a busy machine it says little
    assert found["tasks_per_s_beside_slow"] > 0
    assert found["rest_per_s_beside_slow"] > 0
