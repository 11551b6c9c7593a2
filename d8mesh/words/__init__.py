"""What d8mesh says to people: in their language, and harmless to a terminal.

English stands in the code. Another language is one file beside this one, ``es.po``, in the
form that translators' tools read: ``msgid`` is the English text with its ``{places}``,
``msgstr`` the other one with the same places. A text that the file lacks stays English.

Logs, JSON and what goes over the wire are English always.
"""

from __future__ import annotations

import json
import re
import string
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

ENGLISH: Final = "en"
#: Languages with a file, and English.
LANGUAGES: Final = (ENGLISH, "es")
#: A finished text is taken for one of the catalogue's only if so many of its letters are fixed.
MIN_FIXED_LETTERS: Final = 5
#: Texts within texts (the reason within an error) are looked up so deep.
MAX_TEXT_DEPTH: Final = 8
#: Characters of a text whose parts are looked up; a longer one is a handler's, and takes time.
MAX_CHARS: Final = 2000
#: Finished texts remembered: a table repeats its reasons.
REMEMBERED: Final = 500
#: What stands between the parts of a text that has no entry of its own; lists first.
_MARKS: Final = ("; ", ": ")
#: What fits a place of this name; anything fits the others.
_FITTING: Final = {"count": r"(\d+)", "types": "([^;]*?)", "ids": "([^;]*?)"}

#: Control characters, marks that turn the direction of writing, halves of characters.
_HARMFUL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_ENTRY: Final = re.compile(r'^msgid ("(?:[^"\\]|\\.)*")\nmsgstr ("(?:[^"\\]|\\.)*")$', re.MULTILINE)

_language = ENGLISH


def use(language: str) -> None:
    """Say everything from now on in `language`, one of `LANGUAGES`."""
    global _language
    _language = language if language in LANGUAGES else ENGLISH


def tr(text: str, /, **values: object) -> str:
    """Return the English `text` in the language in use, its ``{places}`` filled in.

    Values are put in with their control characters escaped: they may come from the net.
    """
    template = catalogue(_language).get(text, text)
    return template.format_map({name: escaped(str(value)) for name, value in values.items()})


def translated(text: str) -> str:
    """Return a finished English text, as an error's, in the language in use.

    The catalogue's entry is found by what is fixed in it; of a text without one the parts are
    looked up, and what is not found stays as it is.
    """
    if _language == ENGLISH or len(text) > MAX_CHARS:
        return text
    return catalogue(_language).get(text) or _translated(text, _language, MAX_TEXT_DEPTH)


def escaped(text: str, *, keep: str = "") -> str:
    """Return `text` with characters that could drive a terminal written as escapes.

    Args:
        keep: characters that stay, as a line's end in a text of several lines.
    """
    return _HARMFUL.sub(
        lambda found: (
            found[0]
            if found[0] in keep
            else found[0].encode("unicode_escape", "surrogatepass").decode("ascii")
        ),
        text,
    )


def places_in(template: str) -> list[str]:
    """Return the names in braces, in order.

    Raises:
        ValueError: a brace is alone.
    """
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


@cache
def catalogue(language: str) -> dict[str, str]:
    """Return English text -> text in `language`; nothing for English itself."""
    if language == ENGLISH:
        return {}
    file = Path(__file__).with_name(f"{language}.po").read_text("utf-8")
    return {json.loads(one): json.loads(other) for one, other in _ENTRY.findall(file)}


@lru_cache(REMEMBERED)
def _translated(text: str, language: str, depth: int) -> str:
    if not depth:
        return text
    known = catalogue(language).get(text)
    if known is not None and " " in text:  # one word alone may be anybody's: an id, a type
        return known
    for pattern, names, template in _forms(language):
        found = pattern.fullmatch(text)
        if found:
            values = dict(zip(names, found.groups(), strict=True))
            return template.format_map(
                {name: _translated(value, language, depth - 1) for name, value in values.items()}
            )
    for mark in _MARKS:
        head, found_mark, rest = text.partition(mark)
        if found_mark:
            parts = (_translated(part, language, depth - 1) for part in (head, rest))
            return mark.join(parts)
    return text


@cache
def _forms(language: str) -> list[tuple[re.Pattern[str], list[str], str]]:
    """Return the entries with places as patterns, those with most fixed letters first."""
    found: list[tuple[tuple[int, int], re.Pattern[str], list[str], str]] = []
    for text, template in catalogue(language).items():
        names = places_in(text)
        fixed = [literal for literal, _, _, _ in string.Formatter().parse(text)]
        letters = sum(char.isalpha() for literal in fixed for char in literal)
        if names and letters >= MIN_FIXED_LETTERS:
            pattern = "".join(
                re.escape(literal) + (_FITTING.get(name, "(.*?)") if name is not None else "")
                for literal, name, _, _ in string.Formatter().parse(text)
            )
            rank = (letters, sum(map(len, fixed)))
            found.append((rank, re.compile(pattern, re.DOTALL), names, template))
    found.sort(key=lambda row: row[0], reverse=True)
    return [(pattern, names, template) for _, pattern, names, template in found]
