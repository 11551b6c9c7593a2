"""The web process learns of changes of the access tokens, and notes what they use."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from d8mesh.core.protocol.access_tokens import TokenUsage
from d8mesh.edge.logs import event
from d8mesh.edge.token_file import TokenFile
from d8mesh.errors import ConfigError
from d8mesh.http.access import KnownTokens

#: How often the file is looked at: what is revoked is of no use within a second.
TOKENS_LOOK_S: Final = 0.5
#: How often usage is written, in looks: every few seconds, for the sake of SD cards.
_USAGE_LOOKS: Final = 10
_log: Final = logging.getLogger("d8mesh.web")


class TokenWatch:
    """Keeps `tokens` as the file has them.

    Raises:
        ConfigError: the tokens cannot be read.

    Thread: the loop's; a look is one `stat`, a change is a small file.
    """

    def __init__(self, file: TokenFile) -> None:
        self._file = file
        self._signature = file.signature()
        tokens, usage = file.tokens(), _usage_in(file)
        self.tokens = KnownTokens(tokens)
        self.tokens.usage = {each.id: usage[each.id] for each in tokens if each.id in usage}
        self._trouble = ""

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        looks = 0
        while True:
            await asyncio.sleep(TOKENS_LOOK_S)
            self.look()
            looks += 1
            if looks % _USAGE_LOOKS == 0:
                self.write_usage()

    def look(self) -> None:
        """Take over what has changed; while the file is damaged, all stays as it is."""
        signature = self._file.signature()
        if signature == self._signature:
            return
        try:
            tokens = self._file.tokens()
        except ConfigError as error:
            self._tell(str(error))
            return
        self._signature, self._trouble = signature, ""
        self.tokens.change(tokens)
        event(_log, logging.INFO, "tokens.changed", tokens=len(tokens))

    def write_usage(self) -> None:
        """Have it on the disk what was used, if anything was."""
        if not self.tokens.is_used:
            return
        self.tokens.is_used = False
        try:
            self._file.write_usage(self.tokens.usage)
        except OSError as error:
            self.tokens.is_used = True
            self._tell(f"token usage cannot be written: {error.strerror or error}")

    def _tell(self, text: str) -> None:
        if text != self._trouble:
            self._trouble = text
            event(_log, logging.WARNING, "tokens.trouble", why=text)


def _usage_in(file: TokenFile) -> dict[str, TokenUsage]:
    """Return what was used; where that cannot be read it begins anew, for it guards nothing."""
    try:
        return file.usage()
    except ConfigError as error:
        aside = ""
        with contextlib.suppress(OSError):
            aside = str(file.set_usage_aside())
        event(_log, logging.WARNING, "token_usage.damaged", why=str(error), aside=aside)
        return {}
