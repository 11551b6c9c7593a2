"""How the whole suite is run: side by side, and without the long proofs unless ``--all`` is given.

Whoever names something (a file, a folder, ``-k``, ``-m``) gets all of it, one test after the
other in this very process; ``-n`` says otherwise.
"""

from __future__ import annotations

import os
from typing import Any, Final

import pytest

#: Tests mostly wait, for processes and for deadlines: so many for each core keep it busy.
WORKERS_PER_CORE: Final = 2
#: More would only wait for the same disk and the same loopback.
MAX_WORKERS: Final = 16
#: A worker that has nothing left takes half of what another one has: no file holds up the end.
DISTRIBUTION: Final = "worksteal"

_LEFT_OUT: Final = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the long proofs too")


@pytest.hookimpl(tryfirst=True)  # before xdist reads its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Decide how many processes share the tests."""
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):
        return
    shows_itself = option.usepdb or option.trace or option.capture == "no" or option.collectonly
    if _is_everything(config) and option.numprocesses is None and not shows_itself:
        option.numprocesses = min(MAX_WORKERS, WORKERS_PER_CORE * (os.cpu_count() or 1))
    if option.numprocesses and option.dist == "no":
        option.dist = DISTRIBUTION


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long proofs out of a run of everything."""
    if config.option.all or not _is_everything(config):
        return
    slow = {item for item in items if item.get_closest_marker("slow")}
    items[:] = [item for item in items if item not in slow]
    config.stash[_LEFT_OUT] = len(slow)
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = len(slow)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker of xdist has left out: each leaves out the same."""
    node.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if left_out := config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(f"{left_out} long proofs left out: test --all")


def _is_everything(config: pytest.Config) -> bool:
    """Tell whether nobody has named what to run."""
    has_named = config.args_source is not config.ArgsSource.TESTPATHS
    return not (has_named or config.option.keyword or config.option.markexpr)
