"""What the command `batch` remembers beside the file of its answers, to go on with it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import filelock
import msgspec

from d8mesh.apps.batch_output import EARLY_SUFFIX
from d8mesh.doors.batches.stored_files import write_durably
from d8mesh.errors import ConfigError

#: Behind the name of the file of the answers.
STATE_SUFFIX: Final = ".d8batch"
LOCK_SUFFIX: Final = ".d8batch.lock"
#: Of the form of this file.
STATE_VERSION: Final = 1


class RunState(msgspec.Struct, kw_only=True):
    """One batch: what is asked, and under which keys."""

    version: int = STATE_VERSION
    #: hexadecimal; part of every key
    run: str
    #: a digest of the input's rows, and how many there are
    input: str
    count: int
    #: those options that change what is asked, or where an answer stands
    options: dict[str, str]
    #: the rows that were asked again, each time: ``3,7-9``
    retries: list[str] = []

    def rounds(self) -> Iterator[tuple[str, frozenset[int] | None]]:
        """Yield key and rows of each time that something was asked; None: all rows."""
        yield self.run, None
        for n, rows in enumerate(self.retries, 1):
            yield f"{self.run}/again-{n}", frozenset(numbers_in(rows))


def new_state(digest: str, count: int, options: Mapping[str, str]) -> RunState:
    """Return the state of a batch that begins."""
    return RunState(run=secrets.token_hex(8), input=digest, count=count, options=dict(options))


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold the file of the answers for this process.

    Raises:
        ConfigError: another process writes it, or it cannot be written there.
    """
    path = out.with_name(out.name + LOCK_SUFFIX)
    lock = filelock.FileLock(path, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ConfigError(f"--out {out}: another `batch` writes it now") from error
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"--out {out}: cannot be written there ({why})") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def state_of(out: Path, digest: str, count: int, options: Mapping[str, str]) -> RunState | None:
    """Return the state of a batch that goes on; None: it begins, as it does without its answers.

    Raises:
        ConfigError: the file of the answers belongs to something else.
    """
    path = out.with_name(out.name + STATE_SUFFIX)
    anew = f"take another --out, or remove {out.name} and {path.name} to begin anew"
    try:
        state = msgspec.json.decode(path.read_bytes(), type=RunState)
    except FileNotFoundError:
        if out.exists() and out.stat().st_size:
            raise ConfigError(
                f"--out {out}: there is a file of this name, which no `batch` has begun: "
                "take another name"
            ) from None
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: it cannot be read ({error}); {anew}") from error
    if not out.exists() and not out.with_name(out.name + EARLY_SUFFIX).exists():
        return None  # what was answered is gone, here and there: it is asked anew
    if state.version != STATE_VERSION:
        raise ConfigError(f"{path}: it is of another version of d8mesh; {anew}")
    if (state.input, state.count) != (digest, count):
        told = f"it had {state.count} lines and has {count}"
        told = told if state.count != count else "some of its lines have changed"
        raise ConfigError(f"--out {out} belongs to another input: {told}; {anew}")
    changed = [
        f"--{name} was {state.options.get(name) or 'not given'!r} and is {value or 'not given'!r}"
        for name, value in options.items()
        if state.options.get(name, "") != value
    ]
    if changed:
        raise ConfigError(f"--out {out} was begun with other options: {'; '.join(changed)}; {anew}")
    return state


def save(out: Path, state: RunState) -> None:
    """Have the state on the disk.

    Raises:
        DiskLowError: it cannot be written.
    """
    write_durably(out.with_name(out.name + STATE_SUFFIX), msgspec.json.encode(state))


def ranges_of(numbers: Iterable[int]) -> str:
    """Return numbers in their order as text: ``3,7-9``."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{low}-{high}" if high > low else str(low) for low, high in found)


def numbers_in(text: str) -> Iterator[int]:
    """Yield the numbers that `ranges_of` has told."""
    for part in text.split(","):
        low, _, high = part.partition("-")
        yield from range(int(low), int(high or low) + 1)
