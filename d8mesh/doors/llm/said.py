"""What a model says, piece by piece, and what of its finished answer is not said yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from d8mesh.core.protocol.chat import Completion, JsonObject, Origin, Piece
from d8mesh.doors.llm.endings import origin_of


class ToldPiece(msgspec.Struct):
    """Partial output of a task that speaks, as its worker emits it."""

    text: str = ""
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = []
    logprobs: list[Any] = []
    #: who answers: the first piece of an attempt has it
    origin: dict[str, Any] | None = None

    @property
    def is_text(self) -> bool:
        """True if it is some text of the answer and nothing else."""
        return not (self.thinking or self.tool_calls or self.logprobs or self.origin)


_told: Final = msgspec.msgpack.Decoder(ToldPiece)
_object: Final = msgspec.msgpack.Decoder()


def pieces_of(payloads: Sequence[bytes]) -> Iterator[tuple[Piece, JsonObject | None]]:
    """Yield pieces, each with who answers if it tells that; texts in a row are one piece."""
    texts: list[str] = []
    for payload in payloads:
        try:
            told = _told.decode(payload)
        except (ValueError, RecursionError):
            continue  # not of our handlers: the finished answer has it
        if told.is_text:
            texts.append(told.text)
            continue
        if texts:
            yield Piece(text="".join(texts)), None
            texts = []
        yield (
            Piece(
                text=told.text,
                thinking=told.thinking,
                tool_calls=tuple(told.tool_calls),
                logprobs=tuple(told.logprobs),
            ),
            told.origin,
        )
    if texts:
        yield Piece(text="".join(texts)), None


def objects_of(payloads: Sequence[bytes]) -> Iterator[tuple[Piece, JsonObject | None]]:
    """Yield the partial output of a task that does not speak: how far it is, in `extra`."""
    for payload in payloads:
        try:
            told = _object.decode(payload)
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict):
            yield Piece(extra=told, is_working=True), None


class SaidSoFar:
    """What one task has said to its caller."""

    __slots__ = ("_calls", "_logprobs", "_texts", "_thoughts", "model", "origin")

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls = self._logprobs = 0
        #: who says it, and the model that really runs; as soon as that is known
        self.origin: Origin | None = None
        self.model = ""

    def begun_by(self, told: JsonObject) -> None:
        """Note who answers."""
        self.origin, self.model = origin_of(told), str(told.get("model") or "")

    def add(self, piece: Piece) -> None:
        """Note what is said now."""
        if piece.text:
            self._texts.append(piece.text)
        if piece.thinking:
            self._thoughts.append(piece.thinking)
        self._calls += len(piece.tool_calls)
        self._logprobs += len(piece.logprobs)

    def rest_of(self, completion: Completion) -> Piece | None:
        """Return what of a finished answer is not said yet, with its ending.

        Returns:
            None if it does not begin with what was said: it is another one's.
        """
        text, thinking = "".join(self._texts), "".join(self._thoughts)
        is_same = completion.text.startswith(text) and completion.thinking.startswith(thinking)
        if not is_same or len(completion.tool_calls) < self._calls:
            return None
        return Piece(
            text=completion.text[len(text) :],
            thinking=completion.thinking[len(thinking) :],
            tool_calls=completion.tool_calls[self._calls :],
            logprobs=completion.logprobs[self._logprobs :],
            ending=completion.ending,
            extra=completion.extra,
        )
