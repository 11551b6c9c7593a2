"""A handler's exception in words: one bounded text for the error, one for its traceback.

Both are made of what a handler raised, which may be anything: an exception whose own methods
raise, whose message is huge or drives terminals. Neither function ever raises.
"""

from __future__ import annotations

import contextlib
import traceback
from pathlib import Path
from types import FrameType
from typing import Final

from d8mesh.edge.logs import escape

#: Characters of an error text that travel.
MAX_ERROR_CHARS: Final = 2000
#: Characters of a traceback that travel: some sixty frames.
MAX_TRACEBACK_CHARS: Final = 8000
#: Of a longer one so much of the beginning stays; the end, where the fault is, gets the rest.
HEAD_CHARS: Final = 2000
#: Characters of one of its lines: a message of one huge line must not push the frames out.
MAX_ROW_CHARS: Final = 1000
#: Inner errors of an exception group that are named, and levels of groups in groups.
MAX_INNER: Final = 10
MAX_INNER_DEPTH: Final = 4

#: Modules whose frames stand between a slot and the handler, by the end of their file's name.
_OURS: Final = (
    "d8mesh/nodes/worker/slots.py",
    "d8mesh/nodes/worker/coroutines.py",
    "d8mesh/nodes/process.py",
)
#: The same of the standard library: how threads and coroutines run, how modules are imported.
_THEIRS: Final = ("/asyncio/", "/threading.py", "<frozen importlib", "/importlib/__init__.py")
_PACKAGE: Final = Path(__file__).parents[1]
_HIDDEN: Final = "its traceback cannot be shown"
_TYPE_NAME: Final = type.__dict__["__name__"]


def error_text(error: BaseException) -> str:
    """Return ``TypeName: text`` of an exception, of a group with its inner errors behind it."""
    return _with_inner(error, 0)[:MAX_ERROR_CHARS]


def traceback_text(error: BaseException) -> str:
    """Return the traceback as Python prints it, from the handler's first frame on.

    Causes, notes and the errors of a group are in it. Control characters are escaped; what is
    beyond `MAX_TRACEBACK_CHARS` is left out of the middle.
    """
    try:
        shown = traceback.TracebackException.from_exception(error, compact=True)
        _cut_frames(shown)
        return bounded("".join(shown.format()))
    except BaseException:  # an exception may be made to raise when it is looked at
        return f"{name_of(error)}: {_HIDDEN}"


def is_all_ours(error: BaseException) -> bool:
    """Return whether every frame of its way is of d8mesh: nobody else's handler raised it.

    Those of a ``with`` between two of them, which Python has in `contextlib`, do not count.
    """
    files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return all(file == contextlib.__file__ or Path(file).is_relative_to(_PACKAGE) for file in files)


def stack_text(frame: FrameType) -> str:
    """Return where a thread is just now, from the handler's first frame on; it may be nothing."""
    rows = traceback.extract_stack(frame)
    while rows and _is_above(rows[0].filename):
        rows.pop(0)
    return bounded("It is at (most recent call last):\n" + "".join(rows.format())) if rows else ""


def bounded(text: str) -> str:
    """Return a text of several lines, escaped, with its middle left out if it is too long."""
    if len(text) > 8 * MAX_TRACEBACK_CHARS:  # no need to look at all of a huge one
        text = text[: 2 * MAX_TRACEBACK_CHARS] + "\n…\n" + text[-2 * MAX_TRACEBACK_CHARS :]
    rows = [escape(row[:MAX_ROW_CHARS].expandtabs(4)) for row in text.rstrip("\n").split("\n")]
    rows = [row if len(row) <= MAX_ROW_CHARS else row[: MAX_ROW_CHARS - 1] + "…" for row in rows]
    text = "\n".join(rows)
    if len(text) <= MAX_TRACEBACK_CHARS:
        return text
    left_out = "\n… the middle is left out …\n"
    return text[:HEAD_CHARS] + left_out + text[HEAD_CHARS + len(left_out) - MAX_TRACEBACK_CHARS :]


def name_of(error: BaseException) -> str:
    """Return the name of its class, which a class of its own cannot falsify or refuse."""
    return str(_TYPE_NAME.__get__(type(error)))


def message_of(error: BaseException) -> str:
    """Return the text of an exception; empty if it has none, or cannot tell."""
    try:
        return f"{error}"
    except BaseException:  # its own __str__ may raise anything
        return ""


def _with_inner(error: BaseException, depth: int) -> str:
    text, name = message_of(error), name_of(error)
    told = f"{name}: {text[:MAX_ERROR_CHARS]}" if text else name
    if not isinstance(error, BaseExceptionGroup) or depth == MAX_INNER_DEPTH:
        return told
    inner = [_with_inner(each, depth + 1) for each in error.exceptions[:MAX_INNER]]
    if len(error.exceptions) > MAX_INNER:
        inner.append("…")
    return f"{told}: [{'; '.join(inner)}]"


def _cut_frames(shown: traceback.TracebackException) -> None:
    """Take our own frames, those above the handler's, out of an error and all it came from."""
    left = [shown]
    while left:
        each = left.pop()
        frames = list(each.stack)
        while frames and _is_above(frames[0].filename):
            frames.pop(0)
        each.stack[:] = frames
        further = (each.__cause__, each.__context__, *(each.exceptions or ()))
        left += [one for one in further if one is not None]


def _is_above(filename: str) -> bool:
    path = filename.replace("\\", "/")
    return path.endswith(_OURS) or any(part in path for part in _THEIRS)
