"""Niches out of what a language model answered: the JSON is found, and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
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
    counts as the number. A wrong niche beside right ones is left out.

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
            if niche.name.strip():
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
