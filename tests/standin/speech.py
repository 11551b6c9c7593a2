"""What the stand-in's models say: the question again, a number of words, JSON, a call, vectors."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

#: ``say 20 words`` in a question: the answer has so many.
_WORDS: Final = re.compile(r"\bsay (\d+) words\b")
THOUGHT: Final = "They ask, so I answer."
DIMENSIONS: Final = 16

Answer = Callable[[list[dict[str, Any]]], str]


def default_answer(messages: list[dict[str, Any]]) -> str:
    """Return what the question wishes for: niches as JSON, so many words, or itself."""
    question = str(messages[-1].get("content", "")) if messages else ""
    if '"niches"' in question:
        scores = {"demand": 70, "growth": 60, "feasibility": 80, "competition": 30}
        niche = {"name": "Repair cafés", "description": "Places to mend things.", **scores}
        return json.dumps({"niches": [niche]})
    if found := _WORDS.search(question):
        return " ".join(f"w{n}" for n in range(int(found[1])))
    return f"You asked: {question}"


def pieces(text: str) -> list[str]:
    """Return a text cut into its tokens: words, each with the blank before it."""
    return re.findall(r"\s*\S+|\s+$", text)


def endless() -> Iterator[str]:
    """Yield tokens for ever."""
    while True:
        yield from (" on", " and", " on")


def structured(text: str, wanted: object) -> str:
    """Return `text` if it is JSON already, else JSON that fits ``"json"`` or a schema."""
    try:
        json.loads(text)
    except ValueError:
        told = {"answer": text} if wanted == "json" else instance(wanted)
        return json.dumps(told)
    return text


def instance(schema: object) -> object:
    """Return the plainest value that fits a JSON schema."""
    if not isinstance(schema, dict):
        return {}
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return instance(schema[name][0])
    return _of_type(schema)


def _of_type(schema: Mapping[str, Any]) -> object:
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: instance(each) for name, each in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items", {}))] * max(1, int(schema.get("minItems", 1)))
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    plain: dict[str, object] = {"boolean": True, "null": None}
    return plain.get(kind, "a" * max(1, int(schema.get("minLength", 1))))


def calls(
    tools: list[dict[str, Any]], messages: list[dict[str, Any]], *, is_numbered: bool
) -> list[dict[str, Any]]:
    """Return a call of each tool that the user's question names."""
    if not messages or messages[-1].get("role") != "user":
        return []
    question = str(messages[-1].get("content", ""))
    named = [tool["function"] for tool in tools if tool["function"]["name"] in question]
    return [
        {
            "id": f"call_{hashlib.sha256(f'{n}{question}'.encode()).hexdigest()[:8]}",
            "function": {
                "index": n if is_numbered else 0,
                "name": each["name"],
                "arguments": instance(each.get("parameters", {})),
            },
        }
        for n, each in enumerate(named)
    ]


def logprobs(token: str, top: int) -> list[dict[str, Any]]:
    """Return what is told of one token, with `top` others."""
    told = {"token": token, "logprob": -0.25, "bytes": list(token.encode())}
    others = [
        {"token": f"{token}{n}", "logprob": -0.25 * (n + 1), "bytes": list(f"{token}{n}".encode())}
        for n in range(top)
    ]
    return [told | ({"top_logprobs": others} if top else {})]


def vector(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """Return a vector of length 1, another for each text."""
    blocks = -(-dimensions // 32)
    drawn = b"".join(hashlib.sha256(f"{n} {text}".encode()).digest() for n in range(blocks))
    told = [byte - 127.5 for byte in drawn[:dimensions]]
    length = math.sqrt(sum(each * each for each in told))
    return [each / length for each in told]
