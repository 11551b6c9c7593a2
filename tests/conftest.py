"""Every test run has a mesh, a data folder and a (loopback) interface of its own, and stays there.

Whatever settings the person has, and whatever ``.env`` says, does not reach the tests.
"""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
from collections.abc import Iterator

import pytest

from d8mesh.config import SETTINGS
from tests.loopback import Fence
from tests.side_by_side import (  # noqa: F401  # hooks that pytest finds here
    pytest_addoption,
    pytest_cmdline_main,
    pytest_collection_modifyitems,
    pytest_terminal_summary,
    pytest_testnodedown,
)

_fence = Fence()


@pytest.fixture(autouse=True)
def _loopback_only(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that tried to reach beyond loopback, also if it caught the refusal."""
    _fence.broken.clear()
    _fence.has_namespace = request.node.get_closest_marker("namespace") is not None
    yield
    _fence.has_namespace = None
    broken, _fence.broken = _fence.broken, []
    if broken:
        pytest.fail("traffic beyond loopback: " + "\n".join(broken[:5]), pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    folder = tempfile.TemporaryDirectory(prefix="d8-test-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    ours = {setting.variable for setting in SETTINGS}
    ours.add("COLUMNS")  # pytest's workers have one, and what is not on a terminal is of any width
    for name in [name for name in os.environ if name in ours or name.startswith("D8_")]:
        del os.environ[name]
    os.environ |= {
        "D8_NO_ENV_FILE": "1",
        "D8_OLLAMA_SERVE": "0",
        "D8_INTERFACES": "127.0.0.1",
        "FLASK_HOST": "127.0.0.1",
        "D8_DATA_DIR": folder.name,
        "D8_MESH": f"test-{secrets.token_hex(4)}",
        "D8_MODELS_DIR": "none",  # who wants the embedded model says so
    }
    _fence.raise_up()
    config.add_cleanup(_fence.take_down)
    # A shell starts what runs in the background with Ctrl-C ignored, and children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
