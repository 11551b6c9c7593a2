"""What a request at OpenAI's door asks for, and how its answer is to be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from d8mesh.doors.llm.asked import LlmTask


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedOfModels:
    """The tasks of a request, in the order of its choices or its inputs, and what else it says."""

    tasks: tuple[LlmTask, ...]
    #: as the caller spells it
    model: str
    #: fields of the request that have no effect
    ignored: tuple[str, ...] = ()
    #: the answer is wished for as it grows
    is_streamed: bool = False
    #: a stream is to end with how many tokens it took
    has_usage: bool = False
    #: tools are called ``functions``: an answer may have one ``function_call``
    has_functions: bool = False
    #: what stands before the text of each choice: the prompts, if they are to be repeated
    echoes: tuple[str, ...] = ()
    #: vectors are wished for as base64 of their float32
    is_base64: bool = False
    #: what the answer repeats of the request
    repeated: Mapping[str, Any] = field(default_factory=dict)
