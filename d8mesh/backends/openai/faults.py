"""What a service says when it refuses or fails, in every form that is around.

OpenAI's object, the same in a list (Gemini), its fields at the top (vLLM's older versions), a plain
text (LM Studio), and any of them with the status 200, whole or in the middle of a stream.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, Final

#: Of what a service says so much is looked at: patterns take the square of it.
MAX_LOOKED_AT_CHARS: Final = 4096
#: Longer than any provider makes one wait for a minute's end; what says more is a day's end.
MAX_TOLD_WAIT_S: Final = 2 * 86_400.0
#: Groq: ``2m59.56s``, ``7.66s``, ``1h2m3s``, ``250ms``.
#: A word for what went wrong.
MAX_CODE_CHARS: Final = 100
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|us|h|m|s)")
_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 0.000001}
_TRY_AGAIN: Final = re.compile(r"try again in ((?:\d+(?:\.\d+)?(?:ms|us|h|m|s))+)", re.IGNORECASE)
#: Groq: "on tokens per minute (TPM): Limit 8000, Used 7000, Requested 1200".
_GROQ_LIMIT: Final = re.compile(
    r"on (tokens|requests) per (minute|day)[^:]*: Limit (\d+)", re.IGNORECASE
)
_NOT_IN_TIER: Final = re.compile(r"\blimit: 0\b")
#: The words of vLLM, llama.cpp's server, LM Studio and OpenAI.
_TOO_LONG: Final = re.compile(
    r"maximum context length|exceed_context_size|exceeds? the (?:available |model'?s )?context|"
    r"context (?:length|window) (?:of|exceeded)|longer than the (?:maximum )?(?:model )?context",
    re.IGNORECASE,
)
_BAD_KEY: Final = re.compile(r"api[_ ]key[_ ](?:not[_ ])?(?:in)?valid|invalid[_ ]api[_ ]key", re.I)


class Period(Enum):
    """For how long an account has nothing left."""

    MOMENT = "moment"
    MINUTE = "minute"
    DAY = "day"
    FOR_GOOD = "for good"  #: the model is not part of what the account may use


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFault:
    """What a service said."""

    #: as HTTP has it, or as the body says; 0 where none is told
    status: int
    #: its own words, bounded; `Endpoint.redacted` makes a line for people of them
    text: str
    #: the service's word for it; "" if there is none
    code: str = ""
    #: seconds that it asks to wait; None: it does not say
    wait_s: float | None = None
    period: Period = Period.MOMENT
    #: bounds of the account that it tells
    bounds: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_limit(self) -> bool:
        """The account allows no more now."""
        return not self.is_too_large and (
            self.status == 429 or self.code in ("rate_limit_exceeded", "RESOURCE_EXHAUSTED")
        )

    @property
    def is_too_large(self) -> bool:
        """This request can never fit."""
        return self.status == 413

    @property
    def is_too_long(self) -> bool:
        """The question is longer than the model's context."""
        return self.code == "context_length_exceeded" or (
            self.status in (0, 400, 422) and bool(_TOO_LONG.search(f"{self.code} {self.text}"))
        )

    @property
    def is_overload(self) -> bool:
        """The service has too much to do, or is not ready yet."""
        return self.status in (498, 502, 503, 529) or self.code in (
            "UNAVAILABLE", "capacity_exceeded", "unavailable_error", "server_is_overloaded",
        )  # fmt: skip

    @property
    def is_gone(self) -> bool:
        """The model is not there."""
        return self.status == 404 or self.code in ("model_not_found", "model_decommissioned")

    @property
    def is_key_refused(self) -> bool:
        """The key is none, or may not do this."""
        return self.status in (401, 403) or bool(_BAD_KEY.search(f"{self.code} {self.text}"))


def fault_in(status: int, headers: Mapping[str, str], content: bytes) -> ServiceFault:
    """Return what an answer with an error status says."""
    text = content.decode("utf-8", "replace").strip()
    with contextlib.suppress(ValueError, RecursionError):
        said = error_said(json.loads(text))
        if said is not None:
            return _fault(status, headers, said)
    return _fault(status, headers, {"message": text})


def fault_of(answer: Any) -> ServiceFault | None:
    """Return the error that an answer of status 200 is, or a part of one; None: it is none."""
    said = error_said(answer)
    return None if said is None else _fault(0, {}, said)


def error_said(answer: Any) -> Mapping[str, Any] | None:
    """Return the object that says what went wrong, whatever stands around it."""
    if isinstance(answer, list):
        objects = (each for each in answer if isinstance(each, Mapping))
        return next((said for each in objects if (said := error_said(each)) is not None), None)
    if not isinstance(answer, Mapping):
        return None
    error = answer.get("error")
    if isinstance(error, Mapping):
        return error
    if isinstance(error, str) and error:
        return {**answer, "message": answer.get("message") or error}
    if answer.get("object") == "error" or ("message" in answer and "choices" not in answer):
        return answer
    return None


def seconds_in(text: str) -> float | None:
    """Return how long ``2m59.56s`` is, or ``45``; None if that is no span of time."""
    text = text.strip()
    with contextlib.suppress(ValueError):
        return _bounded(float(text))
    found = _SPAN.findall(text)
    if not found or "".join(number + unit for number, unit in found) != text:
        return None
    return _bounded(sum(float(number) * _UNITS_S[unit] for number, unit in found))


def bounds_in(headers: Mapping[str, str]) -> dict[str, int]:
    """Return the bounds in Groq's headers: of requests a day, of tokens a minute."""
    found: dict[str, int] = {}
    for header, name in (
        ("x-ratelimit-limit-requests", "day_requests"),
        ("x-ratelimit-limit-tokens", "minute_tokens"),
    ):
        value = headers.get(header, "").strip()
        if value.isascii() and value.isdigit() and len(value) < 16:
            found[name] = int(value)
    return found


def used_up_in(headers: Mapping[str, str]) -> tuple[float, str] | None:
    """Return for how long Groq's headers say that nothing is left, and of what; None: there is."""
    for what, span, span_s in (("requests", "day", 86_400), ("tokens", "minute", 60)):
        left, most = (
            headers.get(f"x-ratelimit-{which}-{what}", "") for which in ("remaining", "limit")
        )
        wait_s = seconds_in(headers.get(f"x-ratelimit-reset-{what}", ""))
        if left.strip() in ("0", "0.0") and wait_s:
            # The time until all of it is there again; where it comes back bit by bit, the next
            # request may be sent earlier. If not, the service says so then.
            each_s = (
                span_s / int(most) if most.isascii() and most.isdigit() and int(most) else span_s
            )
            return min(wait_s, max(each_s, 1.0)), f"all {what} of the {span} are used up"
    return None


def _fault(status: int, headers: Mapping[str, str], said: Mapping[str, Any]) -> ServiceFault:
    message = said.get("message")
    whole = (message if isinstance(message, str) else json.dumps(said))[:MAX_LOOKED_AT_CHARS]
    told = [said[key] for key in ("code", "status", "type") if said.get(key)]
    codes = [str(each)[:MAX_CODE_CHARS] for each in told if isinstance(each, str | int)]
    words = [code for code in codes if not code.isdigit()]
    numbers = [int(code) for code in codes if code.isascii() and len(code) == 3 and code.isdigit()]
    rows = [row for row in _list_in(said, "details") if isinstance(row, Mapping)]
    violations = [
        each for row in rows for each in _list_in(row, "violations") if isinstance(each, Mapping)
    ]
    bounds = _groq_bounds(whole) | _gemini_bounds(violations) | bounds_in(headers)
    return ServiceFault(
        status=status or next(iter(numbers), 0),
        text=whole,
        code=words[0] if words else "",
        wait_s=_wait_s(headers, whole, rows),
        period=_period(whole, words, violations),
        bounds=bounds,
    )


def _list_in(row: Mapping[str, Any], name: str) -> list[Any]:
    found = row.get(name)
    return found if isinstance(found, list) else []


def _wait_s(headers: Mapping[str, str], text: str, rows: list[Mapping[str, Any]]) -> float | None:
    told = headers.get("retry-after-ms", "")
    with contextlib.suppress(ValueError):
        return _bounded(float(told) / 1000)
    told = headers.get("retry-after", "")
    if told:
        wait_s = seconds_in(told)
        return _until(told, headers) if wait_s is None else wait_s
    for row in rows:
        if isinstance(row.get("retryDelay"), str):
            return seconds_in(row["retryDelay"])
    found = _TRY_AGAIN.search(text)
    return seconds_in(found[1]) if found else None


def _until(told: str, headers: Mapping[str, str]) -> float | None:
    """Return the seconds from the service's own clock to a date of HTTP's."""
    with contextlib.suppress(ValueError, TypeError):
        until, now = parsedate_to_datetime(told), parsedate_to_datetime(headers["date"])
        return _bounded((until - now).total_seconds())
    return None


def _period(text: str, words: list[str], violations: list[Mapping[str, Any]]) -> Period:
    ids = [str(each.get("quotaId", "")) for each in violations]
    if _NOT_IN_TIER.search(text) or any(str(v.get("quotaValue")) == "0" for v in violations):
        return Period.FOR_GOOD
    if any("PerDay" in each for each in ids) or "insufficient_quota" in words:
        return Period.DAY
    found = _GROQ_LIMIT.search(text)
    if found is not None:
        return Period.DAY if found[2].lower() == "day" else Period.MINUTE
    return Period.MINUTE if any("PerMinute" in each for each in ids) else Period.MOMENT


def _groq_bounds(text: str) -> dict[str, int]:
    return {
        f"{period.lower()}_{what.lower()}": int(number)
        for what, period, number in _GROQ_LIMIT.findall(text)
        if len(number) < 16
    }


def _gemini_bounds(violations: list[Mapping[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in violations:
        quota, value = str(each.get("quotaId", "")), str(each.get("quotaValue", ""))
        period = "day" if "PerDay" in quota else "minute" if "PerMinute" in quota else ""
        if period and value.isascii() and value.isdigit() and 0 < len(value) < 16:
            what = (
                "tokens" if "token" in f"{quota} {each.get('quotaMetric')}".lower() else "requests"
            )
            found[f"{period}_{what}"] = int(value)
    return found


def _bounded(seconds: float) -> float:
    if not seconds >= 0:  # also true for NaN
        raise ValueError(seconds)
    return min(seconds, MAX_TOLD_WAIT_S)
