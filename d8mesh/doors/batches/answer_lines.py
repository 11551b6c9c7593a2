"""The lines of a batch's output and error files: written here, and known again after a restart.

The number of the line in the input stands in the id, so that the files themselves say what is done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

#: Codes of lines that got no answer over HTTP.
EXPIRED: Final = "batch_expired"
CANCELLED: Final = "batch_cancelled"
_CODE_TEXTS: Final = {
    EXPIRED: "This request could not be executed before the completion window expired.",
    CANCELLED: "This request was not executed: the batch was cancelled.",
}
#: Statuses from here on are failures.
_FAILURE: Final = 400
_KNOWN: Final = re.compile(rb'\{"id":"batch_req_[0-9a-f]+_([0-9]{1,9})"')
_encode: Final = msgspec.json.Encoder().encode


@dataclass(slots=True)
class TokenCounts:
    """TokenCounts that the answers of a batch took."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    def add(self, usage: object) -> None:
        """Add those of one answer, as its body tells them."""
        if not isinstance(usage, Mapping):
            return
        self.input += _count(usage, "prompt_tokens") or _count(usage, "input_tokens")
        self.output += _count(usage, "completion_tokens") or _count(usage, "output_tokens")
        for name in ("prompt_tokens_details", "input_tokens_details"):
            self.cached += _count(usage.get(name), "cached_tokens")
        for name in ("completion_tokens_details", "output_tokens_details"):
            self.reasoning += _count(usage.get(name), "reasoning_tokens")

    def told(self) -> dict[str, Any]:
        """Return them as a batch tells them."""
        return {
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.input + self.output,
        }


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """One line of an output file, or of an error file."""

    #: of the input's line
    number: int
    content: bytes
    is_failed: bool
    usage: object = None


def answered(
    run: str, number: int, custom_id: str, *, status: int, task_id: str, body: Mapping[str, Any]
) -> AnswerLine:
    """Return the line of a request that was answered, well or with an error.

    Args:
        run: hexadecimal digits that name the batch.
        status: of HTTP, as the request alone would have been answered with.
        body: what it would have been answered with.
    """
    response = {"status_code": status, "request_id": task_id, "body": body}
    line = {"id": _id(run, number), "custom_id": custom_id, "response": response, "error": None}
    return AnswerLine(number, _encode(line), status >= _FAILURE, body.get("usage"))


def unanswered(run: str, number: int, custom_id: str, code: str) -> AnswerLine:
    """Return the line of a request that was not answered; `code`: `EXPIRED` or `CANCELLED`."""
    error = {"code": code, "message": _CODE_TEXTS[code]}
    line = {"id": _id(run, number), "custom_id": custom_id, "response": None, "error": error}
    return AnswerLine(number, _encode(line), True)


def number_in(line: bytes) -> int:
    """Return which line of the input a line of ours answers; 0 if it is none of ours."""
    found = _KNOWN.match(line)
    return int(found[1]) if found else 0


def usage_in(line: bytes) -> object:
    """Return the usage that a line of an output file tells."""
    try:
        return msgspec.json.decode(line)["response"]["body"].get("usage")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _count(usage: object, name: str) -> int:
    found = usage.get(name) if isinstance(usage, Mapping) else None
    return found if type(found) is int else 0


def _id(run: str, number: int) -> str:
    return f"batch_req_{run}_{number}"
