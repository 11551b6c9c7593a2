"""The access tokens of an orchestrator on the disk, and what each has used.

The command ``token`` changes the tokens, under a lock; the web process reads them, and writes the
usage. Both files are of their owner alone, and are replaced as a whole.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import filelock
import msgspec

from d8mesh.core.protocol.access_tokens import AccessToken, TokenUsage
from d8mesh.errors import ConfigError, D8Error
from d8mesh.private import FILE_MODE, is_writable_by_others, replace_file

#: In the orchestrator's folder of the data folder.
TOKENS_NAME: Final = "tokens.json"
USAGE_NAME: Final = "token_usage.json"
_TOKENS_LOCK: Final = "tokens.lock"
#: Tokens that are kept; of the revoked ones the oldest are forgotten first.
MAX_KEPT_TOKENS: Final = 1000
#: Of either file: as many tokens with the longest names, and room.
MAX_TOKEN_FILE_BYTES: Final = 1024 * 1024
#: Another `token` command takes milliseconds.
_LOCK_S: Final = 5.0
_Content = TypeVar("_Content")


class TokenFile:
    """The two files of one orchestrator.

    Args:
        folder: of the orchestrator, in its data folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokens, self._usage = folder / TOKENS_NAME, folder / USAGE_NAME

    def tokens(self) -> tuple[AccessToken, ...]:
        """Return all, the oldest first; none if there is no file.

        Raises:
            ConfigError: the file cannot be read.
        """
        return _read(self._tokens, tuple[AccessToken, ...]) or ()

    def usage(self) -> dict[str, TokenUsage]:
        """Return what was used, by the tokens' ids; raises as `tokens` does."""
        return _read(self._usage, dict[str, TokenUsage]) or {}

    def add(self, token: AccessToken) -> None:
        """Keep one more.

        Raises:
            ConfigError: the file cannot be read or written.
            D8Error: its name is that of another which is not revoked, or there are too many.
        """
        with self._locked():
            known = list(self.tokens())
            if any(each.name == token.name and each.revoked_at is None for each in known):
                raise D8Error(f"there is a token {token.name} already: revoke it, or name another")
            while len(known) >= MAX_KEPT_TOKENS:
                revoked = next((each for each in known if each.revoked_at is not None), None)
                if revoked is None:
                    raise D8Error(
                        f"there are {MAX_KEPT_TOKENS} tokens already: revoke some of them"
                    )
                known.remove(revoked)
            self._keep([*known, token])

    def revoke(self, name: str, now_at: float) -> AccessToken:
        """Note that a token is of no use any more, and return it.

        Raises:
            ConfigError: the file cannot be read or written.
            D8Error: there is none of this name, or it is revoked already.
        """
        with self._locked():
            known = list(self.tokens())
            for place, each in enumerate(known):
                if each.name == name and each.revoked_at is None:
                    known[place] = msgspec.structs.replace(each, revoked_at=now_at)
                    self._keep(known)
                    return known[place]
        if any(each.name == name for each in known):
            raise D8Error(f"the token {name} is revoked already")
        names = ", ".join(each.name for each in known if each.revoked_at is None) or "none"
        raise D8Error(f"there is no token {name[:80]!r}; there are: {names[:400]}")

    def write_usage(self, usage: Mapping[str, TokenUsage]) -> None:
        """Have it on the disk what was used.

        Raises:
            OSError: it could not be written; what was there before still is.
        """
        replace_file(self._usage, _text(usage))

    def set_usage_aside(self) -> Path:
        """Have the usage begin anew; return where what was there is now.

        Raises:
            OSError: it stays where it is.
        """
        return self._usage.replace(self._usage.with_name(f"{USAGE_NAME}.damaged"))

    def signature(self) -> tuple[int, int, int] | None:
        """Return what changes whenever the tokens do; None: there is no file."""
        with contextlib.suppress(OSError):
            found = self._tokens.stat()
            return found.st_mtime_ns, found.st_size, found.st_ino
        return None

    def _keep(self, tokens: Sequence[AccessToken]) -> None:
        try:
            replace_file(self._tokens, _text(tokens))
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"{self._tokens}: {why}; nothing was changed") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep others from changing the tokens meanwhile."""
        lock = filelock.FileLock(self._folder / _TOKENS_LOCK, mode=FILE_MODE)
        try:
            lock.acquire(timeout=_LOCK_S)
        except filelock.Timeout as error:
            raise D8Error("another command changes the tokens right now: try again") from error
        except OSError as error:
            raise ConfigError(f"{self._folder}: {error.strerror or error}") from error
        try:
            yield
        except OSError as error:
            raise ConfigError(f"{self._tokens}: {error.strerror or error}") from error
        finally:
            lock.release()


def _read(path: Path, kind: type[_Content]) -> _Content | None:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(MAX_TOKEN_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if is_writable_by_others(mode):
        raise ConfigError(
            f"{path}: others on this machine can write it (mode {stat.S_IMODE(mode):04o}, expected "
            f"0600). Run chmod 600 {path}, then see with `token list` whether all of these tokens "
            "are yours"
        )
    try:
        return msgspec.json.decode(text, type=kind)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: it is damaged ({error}). Bring it back from a copy, or delete it and make "
            "the tokens anew"
        ) from error


def _text(content: Sequence[AccessToken] | Mapping[str, TokenUsage]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=1)
