"""From what a request asks to the tasks of a submit: who may run them, and what they need."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from d8mesh.core.protocol.chat import (
    COMPLETION,
    EMBEDDING,
    INSERT,
    MODEL_TYPES,
    THINKING,
    TOOLS,
    VISION,
)
from d8mesh.core.protocol.messages import Group
from d8mesh.core.protocol.source import TaskSource
from d8mesh.doors.llm.asked import Caller, LlmTask
from d8mesh.errors import ModelUnfitError, ModelUnknownError
from d8mesh.nodes.client.groups import encode_data
from d8mesh.nodes.client.wishes import EMBED_TYPE, wish_of
from d8mesh.program import command_name

#: Types whose partial output comes as objects, if that is wished for.
SPEAKING_TYPES: Final = frozenset({"agent_action", "generate"})
#: Models that are told where the one asked for is not there.
MAX_TOLD_MODELS: Final = 10
_DIGEST_BYTES: Final = 16


class FindsModels(Protocol):
    """What is known of the models of the mesh."""

    async def find(self, name: str) -> HasAbilities | None:
        """Return what is known of the model of this name; None: nobody has it."""

    async def known_names(self) -> Sequence[str]:
        """Return what the models are called that may be asked."""


class HasAbilities(Protocol):
    """What is known of one model."""

    @property
    def can(self) -> frozenset[str]:
        """What it is capable of, in Ollama's words; empty where that is not known."""


async def check_models(models: FindsModels, caller: Caller, asked: Sequence[LlmTask]) -> None:
    """Make sure that the models asked for are there, and can do it.

    Raises:
        ModelUnknownError: nobody has the model, nor one that the caller names in its place.
        ModelUnfitError: none of those that are there can do what is asked.
    """
    for task in asked:
        if task.type not in MODEL_TYPES:
            continue
        needed, lacks, is_there = needs_of(task.type, task.data), "", False
        for name in (task.model, *_fallbacks_of(task.type, caller.fallbacks)):
            known = await models.find(name)
            if known is not None:
                is_there = True
                missing = missing_of(needed, known.can)
                if not missing:
                    break
                lacks = lacks or missing
        else:
            if is_there:
                raise _unfit(task.model, lacks)
            raise _unknown(task.model, await models.known_names())


def needs_of(kind: str, data: Mapping[str, Any]) -> frozenset[str]:
    """Return what a model must be capable of to do a task, in Ollama's words."""
    if kind == EMBED_TYPE:
        return frozenset({EMBEDDING})
    messages = data.get("messages") or ()
    wanted = (
        (COMPLETION, True),
        (TOOLS, data.get("tools")),
        (VISION, data.get("images") or any(each.get("images") for each in messages)),
        (INSERT, data.get("suffix")),
        (THINKING, data.get("think")),
    )
    return frozenset(name for name, is_needed in wanted if is_needed)


def missing_of(needed: frozenset[str], can: frozenset[str]) -> str:
    """Return what is needed and lacks, the most telling first; "" if nothing does."""
    if not can:
        return ""
    if EMBEDDING not in can:
        needed -= {COMPLETION}  # who tells of other abilities may not tell of this one
    return min(needed - can, key=(COMPLETION, EMBEDDING, TOOLS, VISION, INSERT, THINKING).index,
               default="")  # fmt: skip


def group_of(caller: Caller, task: LlmTask) -> Group:
    """Return a task as it is submitted.

    Raises:
        TaskRejectedError: it cannot be, as the error says.
    """
    data = data_of(task, caller.fallbacks)
    wish = wish_of(task.type, data, is_one=True)
    source = TaskSource(caller.door, caller.address, caller.program).text()
    return Group(task.type, caller.priority, [encode_data(data)], wish, source=source)


def data_of(task: LlmTask, fallbacks: Sequence[str] = ()) -> dict[str, Any]:
    """Return a task's data with who may run it: no model in the place of another, unasked."""
    data = dict(task.data)
    if task.type in SPEAKING_TYPES:
        data["pieces"] = True
    if task.type not in MODEL_TYPES:
        return data | ({"model": task.model} if task.model else {})
    if others := _fallbacks_of(task.type, fallbacks):
        return data | {"models": [task.model, *others]}
    return data | {"model": task.model, "model_strict": True}


def _fallbacks_of(kind: str, fallbacks: Sequence[str]) -> Sequence[str]:
    """Return who may answer in the place of another; vectors of two models do not compare."""
    return () if kind == EMBED_TYPE else fallbacks


def digest_of_all(groups: Sequence[Group]) -> bytes:
    """Return what is asked hashes to: the same whether it is streamed, and how urgent it is."""
    made = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for group in groups:
        for part in (group.type.encode(), *group.payloads):
            made.update(len(part).to_bytes(8, "big"))
            made.update(part)
    return made.digest()


def _unknown(model: str, known: Sequence[str]) -> ModelUnknownError:
    more = len(known) - MAX_TOLD_MODELS
    there = ", ".join([*known[:MAX_TOLD_MODELS], *([f"and {more} more"] if more > 0 else [])])
    text = (
        f"the mesh has {there}"
        if known
        else (
            "no machine of the mesh has a language model: start a worker where an Ollama is: "
            f"{command_name()} worker"
        )
    )
    error = ModelUnknownError(f"model {model!r} not found; {text}")
    error.details = {"model": model}
    return error


def _unfit(model: str, lacks: str) -> ModelUnfitError:
    error = ModelUnfitError(f'"{model}" does not support {_ABILITIES.get(lacks, lacks)}')
    error.details = {"model": model, "lacks": lacks}
    return error


#: As Ollama tells it.
_ABILITIES: Final = {COMPLETION: "chat", EMBEDDING: "embeddings"}
