"""Everything on this machine: an orchestrator and a worker, together until Ctrl-C."""

from __future__ import annotations

import argparse
import threading
from functools import partial
from typing import Final

from d8mesh.apps.children import CHILDREN_DRAIN_S, Children
from d8mesh.config import Config
from d8mesh.edge.terminal import say, tell
from d8mesh.processes.parent import end_when_told
from d8mesh.words import tr

#: How often the children are looked at.
CHILDREN_LOOK_S: Final = 0.2


def run(config: Config, options: argparse.Namespace) -> int:
    """Run both until Ctrl-C, or until one ends; return the exit code."""
    del config  # the children inherit the settings
    stop = threading.Event()
    end_when_told(stop.set, with_parent=options.with_parent)
    with Children({}) as children:
        running = [
            children.start(name, name, on_line=partial(_tell, name))
            for name in ("orchestrator", "worker")
        ]
        while not stop.wait(CHILDREN_LOOK_S):
            for child in running:
                if not child.is_running:
                    code = child.wait(1.0)
                    ended = {"name": tr(child.name), "code": code}
                    tell(tr("the {name} has ended (exit code {code}); stopping the rest", **ended))
                    return code or 1
        stopping = tr(
            "stopping: the worker finishes the tasks that run, then the orchestrator ends; "
            "{seconds} s at most",
            seconds=f"{CHILDREN_DRAIN_S:.0f}",
        )
        say(stopping)
    return 0


def _tell(name: str, line: str) -> None:
    say(f"[{tr(name)}] {line}")
