"""Web pages that may use a door, and what a browser is told so that it lets them.

A browser asks first (a preflight, ``OPTIONS``) before a page may send what a form could not, and
shows a page no answer that does not name the page's origin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

#: Whose pages Ollama lets in by itself: those of this machine, at any port, and of programs that
#: are made of pages.
_DEFAULT: Final = re.compile(
    r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(?::\d{1,5})?"
    r"|(?:app|file|tauri|vscode-webview|vscode-file)://.*",
    re.IGNORECASE | re.ASCII,
)
#: Any part of an origin, for which a `*` stands.
_ANY_PART: Final = r"[^/@\s]*"
#: Names of headers in a preflight, as many as an official client may ever send.
_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9_, -]{1,4096}", re.ASCII)
#: Allowed where a preflight asks for none by name: those that Ollama allows.
_USUAL_HEADERS: Final = (
    "Authorization, Content-Type, User-Agent, Accept, X-Requested-With, OpenAI-Beta, "
    "x-stainless-arch, x-stainless-async, x-stainless-custom-poll-interval, "
    "x-stainless-helper-method, x-stainless-lang, x-stainless-os, x-stainless-package-version, "
    "x-stainless-poll-helper, x-stainless-retry-count, x-stainless-runtime, "
    "x-stainless-runtime-version, x-stainless-timeout"
)
#: Seconds that a browser may remember the answer to a preflight: as many as Chromium does.
_PREFLIGHT_KEPT: Final = "7200"


class Origins:
    """The origins whose pages may use a door: Ollama's defaults, and those of a setting.

    An origin is what a browser says in the header of that name: ``https://chat.example.org``.
    That of a page without one (a sandboxed frame, a file in most browsers) is ``null``: never.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._more = [_pattern(each) for each in more]

    def __call__(self, origin: str) -> bool:
        """Return whether pages of this origin may."""
        if _DEFAULT.fullmatch(origin):
            return True
        return any(each.fullmatch(origin) for each in self._more)


def no_origin(origin: str) -> bool:
    """Return False: a door for no web page but our own."""
    return False


def is_preflight(method: str, fields: Mapping[str, str]) -> bool:
    """Return whether a browser asks what a page of another origin may."""
    return method == "OPTIONS" and "origin" in fields and "access-control-request-method" in fields


def shared_with(origin: str) -> dict[str, str]:
    """Return the headers that let a page of this origin see an answer, all of its headers too."""
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "*",
        "Vary": "Origin",
    }


def preflight_headers(fields: Mapping[str, str]) -> dict[str, str]:
    """Return what, beside `shared_with`, answers the preflight of an origin that is allowed.

    Whoever may use a door may send it any header: the guard does not go by what headers cost.
    """
    wanted = fields.get("access-control-request-headers", "")
    allowed = {
        "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
        "Access-Control-Allow-Headers": (
            wanted if _HEADER_NAMES.fullmatch(wanted) else _USUAL_HEADERS
        ),
        "Access-Control-Max-Age": _PREFLIGHT_KEPT,
    }
    # A page of a public site that D8_ORIGINS names may reach into this private network.
    if fields.get("access-control-request-private-network") == "true":
        allowed["Access-Control-Allow-Private-Network"] = "true"
    return allowed


def _pattern(text: str) -> re.Pattern[str]:
    if text == "*":
        return re.compile(rf"[a-z][a-z0-9+.-]*://{_ANY_PART}", re.IGNORECASE | re.ASCII)
    return re.compile(_ANY_PART.join(map(re.escape, text.split("*"))), re.IGNORECASE | re.ASCII)
