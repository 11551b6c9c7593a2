"""What a task that a language model answers wishes for: which models, where, and how near.

A `Wish` travels as a text, in `Group.model`, and is kept as that. The broker reads it and never
the task's data. Its form, all parts but the first may be left out::

    [=]MODEL|MODEL;cloud=yes;needs=tools,vision;on=MACHINE#CONVERSATION.PROMPT.OUTPUT

Before ``#`` stands what decides who may run the task (tasks that are alike in it share a lane),
behind it what helps to choose among those.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from d8mesh.core.protocol.messages import MAX_WISH_CHARS
from d8mesh.core.protocol.model_names import STRICT_MARK
from d8mesh.errors import InvalidTaskError

#: Task types that change a service: `Wish.machine` says which; `Wish.models` need not be there.
SERVICE_TYPES: Final = frozenset({"model_pull", "model_remove", "model_load", "model_unload"})
#: Who submits with this priority or a higher one waits at a screen.
INTERACTIVE_PRIORITY: Final = 8
#: Models of one wish: more are no wish.
MAX_MODELS: Final = 16
#: Of the text that names a conversation.
MAX_CONVERSATION_CHARS: Final = 32
#: Of the name of a machine, a worker or a service.
MAX_PLACE_CHARS: Final = 128
_HINT_MARK: Final = "#"
_MORE: Final = ";"
_OR: Final = "|"
_ALSO: Final = ","


class Cloud(StrEnum):
    """Whether a task's data may leave the LAN, to a service that somebody configured."""

    NEVER = "never"
    OVERFLOW = "overflow"  #: if no machine of the LAN can begin with it soon
    YES = "yes"  #: as to any other machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a task wishes for."""

    #: the first is wished for; the others run it only because the caller named them
    models: tuple[str, ...] = ()
    #: no model but `models` will do
    is_strict: bool = False
    #: None: as the orchestrator's D8_CLOUD says
    cloud: Cloud | None = None
    #: what the model must be capable of, in Ollama's words
    needs: frozenset[str] = frozenset()
    #: the only machine, worker or service that will do; "" for any
    machine: str = ""
    #: the same text for all requests of one conversation: who had the last one has it in memory
    conversation: str = ""
    #: how long the question is, and how long the answer may get; 0 where that is not known
    prompt_tokens: int = 0
    output_tokens: int = 0

    def text(self) -> str:
        """Return it as it travels; an empty wish is an empty text.

        Raises:
            InvalidTaskError: it is longer than `MAX_WISH_CHARS`.
        """
        parts = [(STRICT_MARK if self.is_strict else "") + _OR.join(self.models)]
        if self.cloud is not None:
            parts.append(f"cloud={self.cloud}")
        if self.needs:
            parts.append(f"needs={_ALSO.join(sorted(self.needs))}")
        if self.machine:
            parts.append(f"on={self.machine}")
        lane = _MORE.join(parts)
        return with_hints(lane, self.conversation, self.prompt_tokens, self.output_tokens)


def with_hints(lane: str, conversation: str, prompt_tokens: int, output_tokens: int) -> str:
    """Return the text of a wish: what decides who may run it, and what helps to choose.

    Raises:
        InvalidTaskError: it is longer than `MAX_WISH_CHARS`.
    """
    found = lane
    if conversation or prompt_tokens or output_tokens:
        found += f"{_HINT_MARK}{conversation}.{prompt_tokens}.{output_tokens}"
    if len(found) > MAX_WISH_CHARS:
        raise InvalidTaskError(f"models: their names take more than {MAX_WISH_CHARS} characters")
    return found


NO_WISH: Final = Wish()


def is_place(value: object) -> bool:
    """Return whether it may be `Wish.machine`: a line of text without the marks of a wish."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_PLACE_CHARS
        and value.isprintable()
        and value == value.strip()
        and not set(value) & {_HINT_MARK, _MORE, _OR}
    )


def lane_part(text: str) -> str:
    """Return of a wish's text what decides who may run the task."""
    return text.partition(_HINT_MARK)[0] if _HINT_MARK in text else text


@lru_cache(maxsize=4096)
def parse_wish(text: str) -> Wish:
    """Return the wish that `text` is; parts that mean nothing here are passed over."""
    lane, _, hints = text.partition(_HINT_MARK)
    models, *parts = lane.split(_MORE)
    named = dict(part.partition("=")[::2] for part in parts)
    conversation, prompt, output = (*hints.split("."), "", "", "")[:3]
    cloud = named.get("cloud")
    return Wish(
        models=_filled(models.removeprefix(STRICT_MARK).split(_OR)),
        is_strict=models.startswith(STRICT_MARK),
        cloud=Cloud(cloud) if cloud in tuple(Cloud) else None,
        needs=frozenset(_filled(named.get("needs", "").split(_ALSO))),
        machine=named.get("on", ""),
        conversation=conversation,
        prompt_tokens=_count(prompt),
        output_tokens=_count(output),
    )


def _filled(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name)


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
