"""``evolution_crossover`` and ``evolution_mutation``: new genomes from old ones.

A genome is a JSON object: numbers, texts, booleans, null, lists and objects inside it.
Keys and types stay as they are: an integer stays one of 64 bits, a float stays finite.
A ``seed`` in the data makes a task give the same genome wherever it runs.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Mapping
from typing import Any, Final

from d8mesh.errors import InvalidTaskError
from d8mesh.handlers import Data, TaskContext

#: Objects and lists inside each other; deeper ones are a mistake, or an attack on the stack.
MAX_NESTING: Final = 64
#: The integers that JSON's model has here: signed and unsigned 64 bits.
MIN_INTEGER: Final = -(2**63)
MAX_SIGNED: Final = 2**63 - 1
MAX_INTEGER: Final = 2**64 - 1
#: A number moves by about this part of itself, ...
STEP: Final = 0.2
#: ... and one near zero as if it were this large, or it could never leave zero.
SMALLEST_SPAN: Final = 1.0
#: What a mutated text may get in the place of one of its characters.
ALPHABET: Final = string.ascii_letters + string.digits + " "

_chance: Final = random.Random()


def evolution_crossover(data: Data, context: TaskContext) -> dict[str, object]:
    """Return a genome each value of which comes from ``genome1`` or ``genome2``.

    Objects are crossed key by key (a key of one parent only is kept), lists of the same
    length item by item; everything else is taken whole from either parent.

    Raises:
        InvalidTaskError: a field is missing or is not what it must be; names the field.
    """
    del context
    one, two = _genome(data, "genome1"), _genome(data, "genome2")
    return _result(_crossed(one, two, _random(data)))


def evolution_mutation(data: Data, context: TaskContext) -> dict[str, object]:
    """Return ``genome`` with each value changed with the probability ``mutation_rate``.

    A number moves a little, a text gets another character in one place, a boolean flips,
    null stays. A rate of 0 changes nothing.

    Raises:
        InvalidTaskError: a field is missing or is not what it must be; names the field.
    """
    del context
    genome, rate = _genome(data, "genome"), _rate(data)
    return _result(_mutated(genome, rate, _random(data)))


def _result(genome: dict[str, Any]) -> dict[str, object]:
    return {"success": True, "genome": genome, "output": genome}


# --- the two operators ----------------------------------------------------------------


def _crossed(one: Any, two: Any, chance: random.Random) -> Any:
    if isinstance(one, dict) and isinstance(two, dict):
        child = {
            key: _crossed(value, two[key], chance) if key in two else value
            for key, value in one.items()
        }
        return child | {key: value for key, value in two.items() if key not in one}
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [_crossed(*pair, chance) for pair in zip(one, two, strict=True)]
    return one if chance.random() < 0.5 else two


def _mutated(value: Any, rate: float, chance: random.Random) -> Any:
    if isinstance(value, dict):
        return {key: _mutated(inner, rate, chance) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mutated(inner, rate, chance) for inner in value]
    if chance.random() >= rate:
        return value
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return _moved_integer(value, chance)
    if isinstance(value, float):
        return _moved_float(value, chance)
    if isinstance(value, str):
        return _edited(value, chance)
    return value


def _moved_integer(value: int, chance: random.Random) -> int:
    by = round(chance.gauss(0.0, STEP * max(abs(value), SMALLEST_SPAN)))
    by = by or chance.choice((-1, 1))
    highest = MAX_SIGNED if value <= MAX_SIGNED else MAX_INTEGER
    return min(max(value + by, MIN_INTEGER), highest)


def _moved_float(value: float, chance: random.Random) -> float:
    moved = value + chance.gauss(0.0, STEP * max(abs(value), SMALLEST_SPAN))
    return moved if math.isfinite(moved) else value


def _edited(text: str, chance: random.Random) -> str:
    if not text:
        return text
    place = chance.randrange(len(text))
    return text[:place] + chance.choice(ALPHABET) + text[place + 1 :]


# --- the fields -----------------------------------------------------------------------


def _genome(data: Data, field: str) -> dict[str, Any]:
    if field not in data:
        raise InvalidTaskError(f"Missing field: {field}")
    genome = data[field]
    if not isinstance(genome, Mapping):
        raise InvalidTaskError(f"{field}: expected an object, not {_kind(genome)}")
    checked = _checked(genome, field, 0)
    assert isinstance(checked, dict)
    return checked


def _checked(value: Any, path: str, depth: int) -> Any:
    """Return a copy of `value` that holds only what JSON's model has."""
    if depth > MAX_NESTING:
        raise InvalidTaskError(f"{path[:80]}…: nested deeper than {MAX_NESTING}")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidTaskError(f"{path[:200]}: keys must be texts, not {_kind(key)}")
        return {key: _checked(inner, f"{path}.{key}", depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(inner, f"{path}[{i}]", depth + 1) for i, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidTaskError(f"{path[:200]}: expected a finite number, not {value}")
    if isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER:
        raise InvalidTaskError(f"{path[:200]}: expected an integer of 64 bits")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidTaskError(f"{path[:200]}: {_kind(value)} is not a JSON value")


def _rate(data: Data) -> float:
    if "mutation_rate" not in data:
        raise InvalidTaskError("Missing field: mutation_rate")
    rate = data["mutation_rate"]
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not is_number or not 0 <= rate <= 1:  # also true for NaN
        shown = repr(rate)[:40] if is_number else _kind(rate)
        raise InvalidTaskError(f"mutation_rate: expected a number from 0 to 1, not {shown}")
    return float(rate)


def _random(data: Data) -> random.Random:
    seed = data.get("seed")
    if seed is None:
        return _chance
    if isinstance(seed, bool) or not isinstance(seed, int | str):
        raise InvalidTaskError(f"seed: expected an integer or a text, not {_kind(seed)}")
    return random.Random(seed)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
