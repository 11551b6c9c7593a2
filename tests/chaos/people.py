"""Whoever runs the orchestrator: ``python -m tests.chaos.people LOG MESH DATA``.

Lets in who waits, a moment later, and shows out whose fingerprint is in a file of ``LOG/out``, for
as long as that file says. When ``LOG/stop`` is there all are let in at once.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from pathlib import Path

from d8mesh.apps.join import own_endpoint
from d8mesh.errors import D8Error
from d8mesh.nodes.client import Client
from tests.chaos.diary import Diary
from tests.chaos.settings import config_of

#: The files that say who is to be shown out: named by fingerprint, with seconds as text.
OUT: str = "out"
#: How long it takes to see that somebody waits, at most.
SEEN_S = 3.0
LOOK_S = 0.3
ASK_S = 5.0


class Person:
    """One person, and what is on the mind of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._diary = Diary(folder / "people.jsonl")
        #: fingerprint -> when it is let in (monotonic)
        self._due: dict[str, float] = {}

    def look(self, client: Client) -> None:
        """Do what is due."""
        for file in (self._folder / OUT).iterdir():
            lasts_s = float(file.read_text("ascii"))
            file.unlink()
            self._change(client, "revoke", file.name)
            self._due[file.name] = time.monotonic() + lasts_s
        now, is_stopping = time.monotonic(), (self._folder / "stop").exists()
        for member in client.ask("members", {}, timeout=ASK_S)["members"]:
            key = member["fingerprint"]
            if member["standing"] == "admitted":
                self._due.pop(key, None)
                continue
            due = self._due.setdefault(key, now + random.random() * SEEN_S)
            if is_stopping or now >= due:
                self._change(client, "approve", key)

    def _change(self, client: Client, action: str, key: str) -> None:
        self._diary.note(action, key=key)
        client.ask(f"members.{action}", {"who": key}, timeout=ASK_S)


def main() -> None:
    """Look after who may join until killed."""
    log, mesh, data = sys.argv[1:4]
    person = Person(Path(log))
    (Path(log) / OUT).mkdir(exist_ok=True)
    config = config_of(mesh, "loopback", Path(data))
    while True:
        with (
            contextlib.suppress(D8Error),
            Client(endpoint=own_endpoint(config), config=config) as client,
        ):
            while True:
                person.look(client)
                time.sleep(LOOK_S)
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main()
