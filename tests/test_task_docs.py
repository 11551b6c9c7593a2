"""The document of the built-in task types says what the code does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from d8mesh.backends.answer_in_pieces import MAX_TEXT_BYTES
from d8mesh.backends.backend import FIRST_TOKEN_S, TOKEN_GAP_S
from d8mesh.backends.ollama import OllamaBackend
from d8mesh.backends.ollama.bodies import KEEP_ALIVE, MOST_TOKENS
from d8mesh.config import Config
from d8mesh.handlers import Handler, chat_fields, genetic, message_fields
from d8mesh.handlers.chat_fields import AGENT_FIELDS, CODE_FIELDS, EMBED_FIELDS, GENERATE_FIELDS
from d8mesh.handlers.echo import echo
from d8mesh.handlers.llm import embedding_handlers, llm_handlers
from tests.ollama_server import OllamaServer, default_answer
from tests.task_context import Context

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "TASKS.md").read_text("utf-8")
#: What the worker, not the handler, puts into a result.
BY_WORKER = {"code", "error", "worker_id", "duration_s"}
TYPES = (
    "agent_action", "code_generation", "generate", "embed", "evolution_crossover",
    "evolution_mutation", "echo",
)  # fmt: skip


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(title: str, head: str) -> dict[str, list[str]]:
    """Return the rows of a section's table whose first column is `head`, by name."""
    found: dict[str, list[str]] = {}
    is_in = False
    for line in section(title).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            is_in = False
        elif cells[0] == head:
            is_in = True
        elif is_in and (name := re.fullmatch(r"`(\w+)`", cells[0])) is not None:
            found[name[1]] = cells[1:]
    return found


def examples() -> Iterator[tuple[str, dict[str, Any]]]:
    for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL):
        task = json.loads(block)
        assert set(task) == {"type", "data"}
        yield task["type"], task["data"]


class Reads(dict[str, Any]):
    """Data that notes which of its fields are looked at."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


@pytest.fixture(scope="module")
def handlers() -> Iterator[dict[str, Handler]]:
    with OllamaServer() as server:
        server.models = (*server.models, "nomic-embed-text:latest")

        def answer(messages: list[dict[str, Any]]) -> str:
            is_code = str(messages[0]["content"]).startswith("You write")
            calls = {} if is_code else {"tool_calls": [{"function": {"name": "add"}}]}
            server.extra = {"thinking": "hm", **calls}
            server.logprobs = [] if is_code else [{"token": "x"}]
            return default_answer(messages)

        server.answer = answer
        yield {
            **llm_handlers(OllamaBackend(server.url)),
            **embedding_handlers(OllamaBackend(server.url)),
            "evolution_crossover": genetic.evolution_crossover,
            "evolution_mutation": genetic.evolution_mutation,
            "echo": echo,
        }


def test_every_built_in_type_has_its_section_and_an_example() -> None:
    assert {kind for kind, _ in examples()} == set(TYPES)
    assert re.findall(r"^## `(\w+)`$", TEXT, re.MULTILINE) == list(TYPES)


def test_the_fields_of_the_language_model_types_are_the_code_s() -> None:
    assert set(table("`agent_action`", "field")) == AGENT_FIELDS
    assert set(table("`code_generation`", "field")) == CODE_FIELDS
    assert set(table("`embed`", "field")) == EMBED_FIELDS
    assert set(table("`generate`", "field")) == GENERATE_FIELDS
    assert set(table("`agent_action`", "message")) == message_fields.MESSAGE_FIELDS


@pytest.mark.parametrize("kind", ["evolution_crossover", "evolution_mutation"])
def test_the_fields_of_the_genetic_types_are_what_the_code_reads(
    handlers: dict[str, Handler], kind: str
) -> None:
    data = Reads(next(data for name, data in examples() if name == kind))
    handlers[kind](data, Context())
    assert data.read == set(table(f"`{kind}`", "field"))


@pytest.mark.parametrize("kind", TYPES[:6])
def test_required_fields_are_required_and_others_are_not(
    handlers: dict[str, Handler], kind: str
) -> None:
    data = next(data for name, data in examples() if name == kind)
    rows = table(f"`{kind}`", "field")
    required = {name for name, cells in rows.items() if cells[1] == "required"}
    assert handlers[kind]({name: data[name] for name in required}, Context())
    for name in required:
        with pytest.raises(ValueError, match=f"Missing field: {name}"):
            handlers[kind]({k: v for k, v in data.items() if k != name}, Context())


@pytest.mark.parametrize(("kind", "data"), list(examples()))
def test_every_example_runs_and_its_result_has_the_documented_fields(
    handlers: dict[str, Handler], kind: str, data: dict[str, Any]
) -> None:
    result: Any = handlers[kind](data, Context())
    assert result["success"] is True
    documented = {*table("Every result", "result"), *table(f"`{kind}`", "result")}
    assert set(result) <= documented
    by_pool = {"machine", "service", "backend", "is_cloud"}
    may_be_missing = by_pool | BY_WORKER | {"model_requested", "truncated", "ignored"}
    may_be_missing |= {"context", "extra"} | ({"timing"} if kind == "embed" else set())
    assert documented - may_be_missing <= set(result)


def test_defaults_and_limits_are_the_code_s() -> None:
    for kind in ("`agent_action`", "`code_generation`", "`generate`"):
        rows = table(kind, "field")
        assert rows["temperature"][1] == f"`TEMPERATURE` ({Config().temperature})"
        assert rows["max_tokens"][1] == f"`MAX_TOKENS` ({Config().max_tokens})"
        assert rows["keep_alive"][1] == KEEP_ALIVE.replace("m", " m")
    rows = table("`agent_action`", "field")
    assert rows["messages"][2] == f"1 to {message_fields.MAX_MESSAGES:,}"
    assert rows["max_tokens"][2].startswith(f"1 to {chat_fields.MAX_TOKENS:,};")
    assert f"none has more than {MOST_TOKENS:,}" in rows["max_tokens"][2]
    assert rows["temperature"][2] == f"0 to {chat_fields.MAX_TEMPERATURE:g}"
    assert rows["top_logprobs"][2].startswith(f"0 to {chat_fields.MAX_TOP_LOGPROBS} ")
    assert ", ".join(chat_fields.THINK_LEVELS) in rows["think"][2]
    assert ", ".join(message_fields.ROLES) in table("`agent_action`", "message")["role"][1]
    rows = table("`code_generation`", "field")
    assert rows["language"][1:] == [
        chat_fields.DEFAULT_LANGUAGE,
        f"1 to {chat_fields.MAX_LANGUAGE_CHARS} characters",
    ]
    bounds = f"{FIRST_TOKEN_S:.0f} s before the first, {TOKEN_GAP_S:.0f} s between two"
    assert bounds in TEXT
    assert f"more than {MAX_TEXT_BYTES // 2**20} MiB" in TEXT
    assert f"any depth up to {genetic.MAX_NESTING};" in TEXT
