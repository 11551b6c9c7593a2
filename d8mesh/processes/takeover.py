"""A start after another one in the same folder: who is well is let be, who is ending is waited for.

The processes of a launcher that was killed end within a second of it, on a busy machine later; a
person, or the system, may start it again before that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from d8mesh.edge.presence import PRESENCE_LOOK_S, Presence, is_present
from d8mesh.errors import JournalHeldError

_T = TypeVar("_T")

#: What an orchestrator that has ended leaves behind is waited for so long: a stop takes no longer.
TAKEOVER_S: Final = 10.0
#: A launcher that was just killed, or whose own parent was, is gone by then; one that is well not.
LAUNCHER_END_S: Final = 1.0
#: Files that the launcher and the REST process have while they live; the broker has the journal's.
_LAUNCHER_FILE: Final = "launcher.lock"
_WEB_FILE: Final = "web.lock"


def take_over(
    journal: Path, *, tell: Callable[[float], None], pause: Callable[[float], bool]
) -> tuple[Presence, bool]:
    """Wait until nobody of an earlier start is left, and be there in its stead.

    Args:
        journal: where it lies, or will.
        tell: called when somebody is waited for, with the seconds that it may take.
        pause: waits so many seconds; True: there is no more use in waiting.

    Returns:
        What the launcher has from now on, and whether somebody was waited for.

    Raises:
        JournalHeldError: another orchestrator is at work there.
    """
    launcher = Presence(journal.with_name(_LAUNCHER_FILE))
    if not launcher.enter(LAUNCHER_END_S):
        _refuse(journal)
    lock, web = journal.with_name(journal.name + ".lock"), journal.with_name(_WEB_FILE)
    until = time.monotonic() + TAKEOVER_S
    has_waited = False
    while is_present(lock) or is_present(web):
        if not has_waited:
            tell(TAKEOVER_S)
        has_waited = True
        if pause(PRESENCE_LOOK_S):
            break
        if time.monotonic() > until:
            if is_present(lock):
                launcher.leave()
                _refuse(journal)
            break
    return launcher, has_waited


def when_free(opened: Callable[[], _T]) -> _T:
    """Return what is opened on the journal, as soon as whoever else had it has ended.

    Its launcher is there, so nobody who is well has it: a broker that was only beginning when its
    own launcher died may come up late, and take it for the moment in which it learns of that.

    Raises:
        JournalHeldError: it was held all the time.
    """
    until = time.monotonic() + TAKEOVER_S
    while True:
        try:
            return opened()
        except JournalHeldError:
            if time.monotonic() > until:
                raise
        time.sleep(PRESENCE_LOOK_S)


def web_presence(orchestrator: Path) -> Presence:
    """Return what the REST process has while it lives, in the orchestrator's folder."""
    found = Presence(orchestrator / _WEB_FILE)
    found.enter()
    return found


def _refuse(journal: Path) -> None:
    from d8mesh.edge.sqlite import held  # slow to import, and seldom needed

    raise held(journal)
