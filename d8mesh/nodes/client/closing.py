"""The end of a client: nothing that was submitted is lost without a word.

What is open when the interpreter ends is closed then, and what is missing is said on standard
error: nobody could catch an error any more. (A client is never collected before: its own thread
holds it.)
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import weakref
from typing import Final, Protocol

from d8mesh.edge import terminal
from d8mesh.edge.logs import event
from d8mesh.errors import D8Error, NotAcknowledgedError, error_of
from d8mesh.nodes.client.completion_waiters import CompletionWaiters
from d8mesh.words import translated

#: How long `Client.close` and the end of the interpreter wait for acknowledgements.
CLOSE_S: Final = 10.0
#: The same after Ctrl-C: who wants to leave is not held up.
INTERRUPTED_S: Final = 1.0
#: At the end of the interpreter a wait is shown after this long.
PRINT_AFTER_S: Final = 1.0
#: Ids in a message; the error has them all.
SHOWN_IDS: Final = 10
#: Ids of one line of the log, whose values are cut at 200 characters; and lines of one client.
IDS_OF_A_LINE: Final = 7
MAX_LINES: Final = 100
_log: Final = logging.getLogger("d8mesh.client")


def raise_missing(waiters: CompletionWaiters, why: str) -> None:
    """Raise what is missing at the end of a client, if anything is; see `missing_of`."""
    error = missing_of(waiters, why)
    if error is not None:
        raise error


def missing_of(waiters: CompletionWaiters, why: str) -> NotAcknowledgedError | None:
    """Return the error that names what is not acknowledged, or was refused; None: there is nothing.

    Args:
        why: why it is not acknowledged, for people; may be empty.
    """
    task_ids, refused = waiters.unacknowledged()
    if not task_ids:
        return None
    refusals = [error_of(each.code, each.message) for each in refused]
    count = len(task_ids)
    tasks = "1 task is" if count == 1 else f"{count} tasks are"
    more = f" and {count - SHOWN_IDS} more" if count > SHOWN_IDS else ""
    reasons = [*dict.fromkeys(str(each) for each in refusals[:SHOWN_IDS]), *([why] if why else [])]
    if waiters.forgotten:
        reasons.append(f"{waiters.forgotten} more were refused long ago: their ids are forgotten")
    because = f". {'; '.join(reasons)}" if reasons else ""
    shown = ", ".join(task_ids[:SHOWN_IDS])
    error = NotAcknowledgedError(
        f"{tasks} not acknowledged, and may be lost: {shown}{more}{because}", task_ids=task_ids
    )
    if refusals:
        error.__cause__ = refusals[0]
    return error


def note_missing(error: BaseException, missing: NotAcknowledgedError | None) -> None:
    """Say what is missing with the error that is under way, and in the log: nobody may catch it."""
    if missing is None:
        return
    what, _, why = str(missing).partition(". ")
    if why and why in str(error):  # the reason is what the error itself says
        why = ""
    error.add_note(f"d8mesh: {what}. {why}" if why else f"d8mesh: {what}")
    ids = missing.task_ids
    lines = [ids[n : n + IDS_OF_A_LINE] for n in range(0, len(ids), IDS_OF_A_LINE)]
    for line in lines[:MAX_LINES]:
        told = {"ids": ",".join(line), "of": len(ids), "why": why}
        event(_log, logging.WARNING, "client.unacknowledged", **told)


# ---------------------------------------------------------- the end of the interpreter


class Closable(Protocol):
    """A client that may still be open when the interpreter ends."""

    #: where it is known what is not acknowledged
    waiters: CompletionWaiters

    def close(self, timeout_s: float = ..., /) -> None:
        """End it."""


#: open clients, and the process that each belongs to
_open: weakref.WeakKeyDictionary[Closable, int] = weakref.WeakKeyDictionary()
_registered: set[int] = set()  # process ids


def close_at_exit(client: Closable) -> None:
    """Have `client` closed when the interpreter ends, if nobody has done so by then."""
    pid = os.getpid()
    _open[client] = pid
    if pid in _registered:
        return
    if not _registered:
        atexit.register(_close_all)
    _registered.add(pid)
    # A process that multiprocessing forked ends without what is registered above.
    children = sys.modules.get("multiprocessing.util")
    if children is not None:
        children.Finalize(None, _close_all, exitpriority=100)


def forget(client: Closable) -> None:
    """This one is closed."""
    _open.pop(client, None)


def _close_all() -> None:
    """Close what is still open, all within `CLOSE_S`; say what is missing."""
    clients = [client for client, pid in _open.items() if pid == os.getpid()]
    # What ended the program is known here; who left by Ctrl-C is not held up.
    is_interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
    until = time.monotonic() + (INTERRUPTED_S if is_interrupted else CLOSE_S)
    for client in clients:
        client.waiters.shut()
    first_until = min(until, time.monotonic() + PRINT_AFTER_S)
    try:
        for client in clients:
            client.waiters.wait_empty(max(0.0, first_until - time.monotonic()))
        count = sum(client.waiters.count for client in clients)
        left_s = until - time.monotonic()
        if count and left_s > 0:
            print_waiting(count, left_s)
    except KeyboardInterrupt:
        until = 0.0
    for client in clients:
        try:
            client.close(max(0.0, until - time.monotonic()))
        except D8Error as error:
            _say(str(error))
        except KeyboardInterrupt:  # what is missing was told
            until = 0.0


def print_waiting(count: int, left_s: float) -> None:
    """Say why the end of the program takes a while."""
    tasks = "1 task" if count == 1 else f"{count} tasks"
    _say(f"waiting up to {left_s:.0f} s for the acknowledgement of {tasks}; Ctrl-C ends it")


def _say(text: str) -> None:
    """Say it where a person sees it: there is nobody any more to catch an error."""
    if sys.stderr is not None:
        terminal.tell(f"d8mesh: {translated(text)}")
    if _log.hasHandlers():
        event(_log, logging.WARNING, "client.unacknowledged", error=text)
