"""From a row of the command `batch` to its tasks, and from their ends to a line of the answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from d8mesh.apps.batch_input import AskedRow
from d8mesh.core.protocol.chat import Completion
from d8mesh.doors.batches.answer_lines import answered
from d8mesh.doors.batches.answering import LineForm, answers_of, asked_line, body_of, form_of
from d8mesh.doors.batches.asking import AskedLine, EndedLine
from d8mesh.doors.llm.asked import LlmAnswer, LlmTask
from d8mesh.doors.openai.errors import error_body, status_of
from d8mesh.errors import D8Error

#: Stands for the model of a row that names none, and is in no task.
ANY_MODEL: Final = "any"
EMBED: Final = "embed"
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class WrittenLine:
    """A line of the answers."""

    number: int
    content: bytes
    is_failed: bool
    tokens: int


class RowRequests:
    """Knows what rows ask, and how their answers are written.

    Args:
        run: hexadecimal digits that name this batch.
        models: those that may answer a row that names none, in order; empty: any.
        cloud: as of the tasks' data; "": as the orchestrator has it.
    """

    def __init__(self, run: str, models: Sequence[str], cloud: str) -> None:
        self._run, self._models, self._cloud = run, models, cloud
        self._last: tuple[LineForm, LineForm] | None = None

    def asked(self, row: AskedRow) -> AskedLine:
        """Return what a row asks for, or why it cannot be asked."""
        is_named = bool(row.body.get("model"))
        body = row.body if is_named else {**row.body, "model": self._first}

        def placed(task: LlmTask) -> Mapping[str, Any]:
            return {**task.data, **self._place(task, is_named=is_named)}

        line = asked_line(row.endpoint, row.number, row.name, body, placed)
        if isinstance(line.form, LineForm) and row.is_plain:
            line = replace(line, form=self._plain_form(line.form))
        return line

    def _plain_form(self, form: LineForm) -> LineForm:
        """Return the form of a plain answer: nearly all rows share theirs."""
        if self._last is None or self._last[0] is not form:
            self._last = form, form._replace(is_plain=True)
        return self._last[1]

    @property
    def _first(self) -> str:
        return self._models[0] if self._models else ANY_MODEL

    def _place(self, task: LlmTask, *, is_named: bool) -> dict[str, Any]:
        """Return who may run a task, in the words of its data."""
        found: dict[str, Any] = {"cloud": self._cloud} if self._cloud else {}
        if is_named or len(self._models) == 1 or task.type == EMBED:
            return found | {"model": task.model, "model_strict": True}
        return found | ({"models": list(self._models)} if self._models else {})

    def written(self, line: EndedLine, unknown: Collection[str], now_at: int) -> WrittenLine:
        """Return the line of the answers for a row that has ended.

        Args:
            unknown: models that nobody has.
            now_at: Unix seconds.
        """
        is_plain = isinstance(line.form, LineForm) and form_of(line).is_plain
        try:
            answers = answers_of(line, unknown)
            if is_plain:
                content = _encode(_plain(line, answers))
            else:
                content = self._whole(line, 200, body_of(line, unknown, now_at))
            return WrittenLine(line.number, content, False, _tokens(answers))
        except D8Error as error:
            if is_plain:
                told = error_body(error)["error"]
                reason = {"code": told["code"], "message": told["message"]}
                failed = {**_named(line), "output": None, "error": reason}
                return WrittenLine(line.number, _encode(failed), True, 0)
            content = self._whole(line, status_of(error), error_body(error))
            return WrittenLine(line.number, content, True, 0)

    def _whole(self, line: EndedLine, status: int, body: Mapping[str, Any]) -> bytes:
        task_id = line.ends[0].task_id if line.ends else ""
        name = line.custom_id
        found = answered(self._run, line.number, name, status=status, task_id=task_id, body=body)
        return found.content


def is_failed(line: bytes) -> bool:
    """Return whether a line of the answers tells of a failure."""
    try:
        told = _decode(line)
        response = told.get("response") or {}
        return told.get("error") is not None or response.get("status_code", 0) >= 400
    except (ValueError, AttributeError, TypeError):
        return False


def _named(line: EndedLine) -> dict[str, Any]:
    return {"n": line.number, **({"id": line.custom_id} if line.custom_id else {})}


def _plain(line: EndedLine, answers: Sequence[LlmAnswer]) -> dict[str, Any]:
    said = [each.completion for each in answers if each.completion is not None]
    first = said[0]
    texts = [each.text for each in said]
    usages = [each.ending.usage for each in said]
    found: dict[str, Any] = {**_named(line), "output": texts[0] if len(texts) == 1 else texts}
    found |= _beside(first)
    return found | {
        "model": first.model,
        "machine": first.origin.machine if first.origin else "",
        "finish_reason": str(first.ending.finish_reason),
        "prompt_tokens": sum(each.prompt_tokens for each in usages),
        "completion_tokens": sum(each.completion_tokens for each in usages),
        "error": None,
    }


def _beside(said: Completion) -> dict[str, Any]:
    """Return what a model said beside the text."""
    found: dict[str, Any] = {}
    if said.thinking:
        found["thinking"] = said.thinking
    if said.tool_calls:
        found["tool_calls"] = list(said.tool_calls)
    return found


def _tokens(answers: Sequence[LlmAnswer]) -> int:
    usages = [each.completion.ending.usage for each in answers if each.completion]
    usages += [each.embeddings.usage for each in answers if each.embeddings]
    return sum(each.total for each in usages)
