"""The keys by which a request is known again, as they are submitted.

A key stands for one answer. If there was none, for the task failed, who asks again with the same
key has it tried again: a failure that is told for ever helps nobody.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

from d8mesh.doors.llm.asked import Caller
from d8mesh.nodes.client.groups import MAX_KEY_CHARS

#: Keys of failed requests that are remembered; a forgotten one tells its failure once more.
MAX_FAILED_KEYS: Final = 10_000
#: Of a key that is passed on as it is: the door's name, and the number of a try, come to it.
_MAX_PLAIN_CHARS: Final = MAX_KEY_CHARS - 12


class RequestKeys:
    """Knows which keys have to be told from those of before."""

    def __init__(self) -> None:
        #: a key -> how often what was asked with it has failed
        self._failures: OrderedDict[str, int] = OrderedDict()

    def of(self, caller: Caller) -> str:
        """Return the caller's key as a submit has it: apart from those of other doors; or ""."""
        if not caller.key:
            return ""
        plain = _plain(caller)
        failures = self._failures.get(plain, 0)
        return f"{plain} {failures}" if failures else plain

    def failed(self, caller: Caller, key: str) -> None:
        """What was submitted with `key` has failed: the next one is another."""
        if key and key == self.of(caller):  # else somebody has told it already
            plain = _plain(caller)
            self._failures[plain] = self._failures.pop(plain, 0) + 1
            if len(self._failures) > MAX_FAILED_KEYS:
                self._failures.popitem(last=False)


def _plain(caller: Caller) -> str:
    key = f"{caller.door} {caller.key}"
    if len(key) <= _MAX_PLAIN_CHARS:
        return key
    return f"{caller.door} {hashlib.blake2b(caller.key.encode(), digest_size=32).hexdigest()}"
