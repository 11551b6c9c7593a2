"""A dispatcher with a real journal for each test of the core."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.wired_broker import WiredBroker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[WiredBroker]:
    wired = WiredBroker(tmp_path)
    yield wired
    wired.close()
