"""How the text of a setting is read: a parser for each form.

A parser returns the value, or raises `ValueError`; what is allowed, for people, stands in the
setting's row in `d8mesh.config`.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Final, TypeAlias
from urllib.parse import urlsplit

#: Characters of the path of a folder: beyond it no system opens a file below.
MAX_PATH_CHARS: Final = 1024
#: LLM services named in one variable: a worker tells of 64 at most.
MAX_HOSTS: Final = 32
#: What D8_LOAD_OPTIONS sets: Ollama's options that a model is loaded with.
LOADING_OPTIONS: Final = frozenset(
    {"draft_num_predict", "main_gpu", "num_batch", "num_ctx", "num_gpu", "num_thread", "use_mmap"}
)
#: What D8_CLOUD_LIMITS bounds.
CLOUD_BOUNDS: Final = ("minute_requests", "minute_tokens", "day_requests", "day_tokens")
#: Names that travel: a worker id, a mesh, a model. Printable, bounded, no path or option.
NAME_PATTERN: Final = r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]{0,127}"
_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*"
#: The name of a model, ``library/name:tag``: no URL, no way up, no option.
MODEL_PATTERN: Final = rf"(?=.{{1,128}}\Z){_PART}(?:[:/]{_PART})*"

Parser: TypeAlias = Callable[[str], object]
#: Different characters that a mesh key has at least.
MIN_KEY_SIGNS: Final = 8
#: The share of its characters that may follow each other in order.
MAX_IN_ORDER: Final = 0.75


def integer(low: int, high: int) -> Parser:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValueError(text)
        return int(text)

    return parse


def number(low: float, high: float) -> Parser:
    def parse(text: str) -> float:
        if not text.isascii() or "_" in text:  # Python takes both
            raise ValueError(text)
        value = float(text)
        if not low <= value <= high:  # also false for NaN
            raise ValueError(text)
        return value

    return parse


def matching(pattern: str, *, lower: bool = False, upper: bool = False) -> Parser:
    def parse(text: str) -> str:
        text = text.lower() if lower else text.upper() if upper else text
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return parse


def mesh_key(text: str) -> str:
    """Take a key of a mesh that is not guessed at once: who hears a proof can try keys on it."""
    if not re.fullmatch(r"[!-~]{16,256}", text) or len(set(text)) < MIN_KEY_SIGNS:
        raise ValueError(text)
    if text in (text + text)[1:-1]:  # a part of it, repeated
        raise ValueError(text)
    steps = [ord(after) - ord(before) for before, after in pairwise(text)]
    if max(steps.count(1), steps.count(-1), steps.count(0)) > MAX_IN_ORDER * len(steps):
        raise ValueError(text)
    return text


def switch(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def listened_host(text: str) -> str:
    if text != "localhost":
        ipaddress.ip_address(text)
    return text


def url(default_port: int) -> Parser:
    def parse(text: str) -> str:
        text = text if "://" in text else f"http://{text}"
        parts = urlsplit(text)
        port = parts.port  # raises ValueError beyond 65535
        host = parts.hostname or ""
        host.encode("idna")  # raises UnicodeError, a ValueError: "a..b" could never be looked up
        is_name = host and not host.isdigit() and text.isprintable() and " " not in text
        if parts.scheme not in ("http", "https") or not is_name or port == 0:
            raise ValueError(text)
        if "@" in parts.netloc or parts.query or parts.fragment or parts.path not in ("", "/"):
            raise ValueError(text)
        place = parts.netloc.rstrip(":")
        if port is None and parts.scheme == "http":  # who leaves it out means ours, not 80
            place += f":{default_port}"
        return f"{parts.scheme}://{place}"

    return parse


def base_url(default_path: str) -> Parser:
    """Take the address of an API, with its path; without one it is `default_path`."""

    def parse(text: str) -> str:
        text = text if "://" in text else f"http://{text}"
        parts = urlsplit(text)
        path = parts.path.rstrip("/")
        if (
            not re.fullmatch(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*", path)
            or parts.query
            or parts.fragment
        ):
            raise ValueError(text)
        return f"{url(80)(f'{parts.scheme}://{parts.netloc}')}{path or default_path}"

    return parse


def urls(one: Parser) -> Parser:
    def parse(text: str) -> tuple[str, ...]:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not 0 < len(parts) <= MAX_HOSTS:
            raise ValueError(text)
        return tuple(dict.fromkeys(str(one(part)) for part in parts))

    return parse


def limits(text: str) -> tuple[tuple[str, str, int], ...]:
    """Take ``groq:minute_requests=30,day_requests=1000;gemini/MODEL:minute_tokens=250000``."""
    found: list[tuple[str, str, int]] = []
    for row in filter(None, map(str.strip, text.split(";"))):
        who, _, bounds = row.rpartition(":")
        if not re.fullmatch(rf"(?:groq|gemini)(?:/{MODEL_PATTERN})?", who):
            raise ValueError(text)
        for bound in bounds.split(","):
            name, _, number = bound.strip().partition("=")
            if name not in CLOUD_BOUNDS or not re.fullmatch(r"[0-9]{1,15}", number):
                raise ValueError(text)
            found.append((who, name, int(number)))
    if not found:
        raise ValueError(text)
    return tuple(found)


def load_options_of(text: str) -> dict[str, dict[str, int | bool]]:
    """Take ``{"num_ctx": 8192, "MODEL": {"num_ctx": 4096}}``: for all models, and for one."""
    try:
        told = json.loads(text)
    except RecursionError:
        raise ValueError(text) from None
    if not isinstance(told, dict):
        raise ValueError(text)
    found: dict[str, dict[str, int | bool]] = {}
    for name, value in told.items():
        if isinstance(value, dict):
            if not re.fullmatch(MODEL_PATTERN, name, re.ASCII):
                raise ValueError(text)
            found.setdefault(name, {}).update(value)
        else:
            found.setdefault("", {})[name] = value
    for options in found.values():
        if not LOADING_OPTIONS.issuperset(options):
            raise ValueError(text)
        if not all(isinstance(value, int) and abs(value) < 2**31 for value in options.values()):
            raise ValueError(text)
    return found


def tls(text: str) -> str:
    if text.lower() == "auto":
        return "auto"
    files = [each.strip() for each in text.split(",")]
    if len(files) != 2 or not all(files) or not text.isprintable():
        raise ValueError(text)
    return ",".join(files)


def names(pattern: str, *, is_printable: bool = False) -> Parser:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(part.strip() for part in text.split(",") if part.strip())
        if not names or not all(re.fullmatch(pattern, name) for name in names):
            raise ValueError(text)
        if is_printable and not text.isprintable():
            raise ValueError(text)
        return names

    return parse


def addresses(text: str) -> tuple[str, ...]:
    """Take IP addresses."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError(text)
    return tuple(str(ipaddress.ip_address(part)) for part in parts)


def fingerprints(text: str) -> tuple[str, ...]:
    """Take SHA-256 fingerprints as programs show them, as 64 lower-case hex digits each."""
    parts = [part.strip().replace(":", "").lower() for part in text.split(",") if part.strip()]
    if not parts or not all(re.fullmatch(r"[0-9a-f]{64}", part) for part in parts):
        raise ValueError(text)
    return tuple(parts)


def folder(text: str) -> str:
    """Take the path of a folder; bytes that are no UTF-8 (as surrogates) cannot be a journal's."""
    text.encode("utf-8")  # raises UnicodeEncodeError, a ValueError
    # Also a "C:\\temp\\new" of `.env`, where double quotes make a tab and a line of it.
    if re.search(r"[\0-\x1f\x7f]", text) or len(text) > MAX_PATH_CHARS:
        raise ValueError(text)
    return text
