"""Niches out of what a language model answered: the JSON is found, and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta

from d8mesh.errors import BackendAnswerError
from d8mesh.handlers.thoughts import without_thoughts

#: A model that talks about braces: more places are not tried.
MAX_STARTS: Final = 50
#: Far more text than any list of niches.
MAX_ANSWER_CHARS: Final = 200_000
#: A model was asked for three.
MAX_NICHES: Final = 20

NicheName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=200)]
Description: TypeAlias = Annotated[str, Meta(min_length=1, max_length=4000)]
Score: TypeAlias = Annotated[float, Meta(ge=0, le=100)]

#: What a model that keeps to schemas is held to: tighter than what is taken, so that a small one
#: comes to an end, and a large one has room.
ASKED_NICHES: Final = 3
ASKED_NAME_CHARS: Final = 80
ASKED_DESCRIPTION_CHARS: Final = 300
SCORES: Final = ("demand", "growth", "feasibility", "competition")
#: A text in words begins with one of these: Latin, Greek, Cyrillic, Hebrew, Arabic, Devanagari,
#: kana, Chinese, Hangul.
_LETTERS: Final = (
    r"A-Za-z\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u02AF\u0391-\u03A1\u03A3-\u03C9\u0400-\u0481"
    r"\u048A-\u052F\u05D0-\u05EA\u0620-\u064A\u0904-\u0939\u3041-\u3096\u30A1-\u30FA"
    r"\u4E00-\u9FFF\uAC00-\uD7A3"
)
#: What follows: nothing that JSON escapes, and at most three bytes of UTF-8 each, so that a small
#: model that goes astray comes to its end within `niche.NICHE_TOKENS` all the same.
_CHARACTERS: Final = r" !#-\[\]-~\u00A0-\uD7FF\uF900-\uFFFD"


def _words(least: int, most: int) -> dict[str, Any]:
    """Return the schema of a text in words; those who know patterns need no lengths beside it."""
    pattern = f"^[{_LETTERS}][{_CHARACTERS}]{{{least - 1},{most - 1}}}$"
    return {"type": "string", "minLength": least, "maxLength": most, "pattern": pattern}


#: The form of an answer, as a JSON schema; scores are whole numbers, which every grammar bounds.
NICHE_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "niches": {
            "type": "array",
            "minItems": ASKED_NICHES,
            "maxItems": ASKED_NICHES,
            "items": {
                "type": "object",
                "properties": {
                    "name": _words(3, ASKED_NAME_CHARS),
                    "description": _words(10, ASKED_DESCRIPTION_CHARS),
                    **{
                        score: {"type": "integer", "minimum": 0, "maximum": 100} for score in SCORES
                    },
                },
                "required": ["name", "description", *SCORES],
                "additionalProperties": False,
            },
        }
    },
    "required": ["niches"],
    "additionalProperties": False,
}

_START: Final = re.compile(r"[\[{]")


class Niche(msgspec.Struct, frozen=True, kw_only=True):
    """One niche; scores from 0 to 100. Only much `competition` is bad."""

    name: NicheName
    description: Description
    demand: Score
    growth: Score
    feasibility: Score
    competition: Score

    @property
    def opportunity(self) -> float:
        """All scores in one: 100 is best."""
        return round((self.demand + self.growth + self.feasibility + 100 - self.competition) / 4, 1)


def niches_in(answer: str) -> tuple[Niche, ...]:
    """Return the niches of a model's `answer`: one or more.

    Text around the JSON, thoughts and fences are passed over; a number written as text
    counts as the number. A wrong niche beside right ones is left out: one without a name or a
    description in words, or that was named before.

    Raises:
        BackendAnswerError: there are none; the message says what is wrong, for people
            and for the model.
    """
    text = answer[:MAX_ANSWER_CHARS]
    problem = "there is no JSON object in it"
    # The text as it is comes last: a description may speak of the tag that ends thoughts.
    for value in chain(_values_in(without_thoughts(text)), _values_in(text)):
        rows = _rows(value)
        niches: list[Niche] = []
        for row in rows[:MAX_NICHES]:
            try:
                niche = msgspec.convert(row, Niche, strict=False)
            except msgspec.ValidationError as error:
                problem = f"a niche has not the form that was asked for: {error}"
                continue
            if wrong := _nonsense(niche, niches):
                problem = wrong
                continue
            name, description = _whole(niche.name), _whole(niche.description)
            niches.append(msgspec.structs.replace(niche, name=name, description=description))
        if niches:
            return tuple(niches)
        if not rows and problem.startswith("there is no"):
            problem = 'its JSON has no list "niches"'
    raise BackendAnswerError(problem)


def _values_in(text: str) -> Iterator[Any]:
    """Yield the JSON objects and lists that stand in `text`, outermost first."""
    decoder = json.JSONDecoder(parse_constant=_refuse)
    at = 0
    for _ in range(MAX_STARTS):
        start = _START.search(text, at)
        if start is None:
            return
        try:
            value, at = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            at = start.end()
            continue
        yield value


def _nonsense(niche: Niche, before: Sequence[Niche]) -> str:
    """Return what is wrong with a niche of the right form; "" if it says something."""
    if not any(map(str.isalpha, niche.name)):
        return "a niche has no name in words"
    if not any(map(str.isalpha, niche.description)):
        return f"the niche {niche.name!r} has no description in words"
    if any(niche.name.strip().casefold() == each.name.strip().casefold() for each in before):
        return f"the niche {niche.name!r} stands there twice"
    return ""


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _rows(value: Any) -> list[Any]:
    """Return what may be niches: the list "niches", a bare list, or a single one."""
    if isinstance(value, dict):
        listed = value.get("niches")
        if isinstance(listed, list):
            return listed
        return [value] if "name" in value else []
    return [row for row in value if isinstance(row, dict)]


def _whole(text: str) -> str:
    """Return `text` without halves of characters, which JSON can write and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")
