"""What is said of Ollama's calls is what they read."""

from __future__ import annotations

import pytest

from d8mesh.doors.ollama.described import (
    OllamaChat,
    OllamaEmbed,
    OllamaEmbeddings,
    OllamaGenerate,
    OllamaMessage,
)
from d8mesh.doors.ollama.text_requests import CHAT_FIELDS, PROMPT_PARTS
from d8mesh.doors.ollama.vector_requests import EMBED_FIELDS_KNOWN
from d8mesh.handlers.message_fields import MESSAGE_FIELDS

_OF_BOTH = CHAT_FIELDS - {"messages", "tools"}


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        (OllamaChat, CHAT_FIELDS),
        (OllamaGenerate, _OF_BOTH | PROMPT_PARTS),
        (OllamaEmbed, EMBED_FIELDS_KNOWN),
        (OllamaEmbeddings, (EMBED_FIELDS_KNOWN - {"dimensions", "input", "truncate"}) | {"prompt"}),
        (OllamaMessage, MESSAGE_FIELDS),
    ],
)
def test_the_fields_that_are_said_are_those_that_are_read(
    kind: type, known: frozenset[str]
) -> None:
    assert set(kind.__struct_fields__) == known  # type: ignore[attr-defined]
