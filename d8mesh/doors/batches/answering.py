"""The requests of batches: what they ask, and how their answers are written, as OpenAI has it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

from d8mesh.doors.batches.answer_lines import AnswerLine, answered
from d8mesh.doors.batches.asking import AskedLine, EndedLine
from d8mesh.doors.llm.asked import LlmAnswer, LlmTask
from d8mesh.doors.llm.delivered import DeliveredAnswers
from d8mesh.doors.llm.endings import answer_of
from d8mesh.doors.llm.spending import SpendsTokens, spend_nothing
from d8mesh.doors.llm.wanted import FindsModels, data_of
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.chat_answer import chat_body
from d8mesh.doors.openai.chat_request import asked_of_chat
from d8mesh.doors.openai.completion_answer import completion_body
from d8mesh.doors.openai.completion_request import asked_of_completion
from d8mesh.doors.openai.embedding_answer import embedding_body
from d8mesh.doors.openai.embedding_request import asked_of_embedding
from d8mesh.doors.openai.errors import error_body, status_of
from d8mesh.doors.openai.responses_answer import response_body
from d8mesh.doors.openai.responses_request import asked_of_response
from d8mesh.errors import D8Error, InvalidTaskError, ModelUnknownError
from d8mesh.nodes.client.results import decoded

#: The data of a task.
PlacedData: TypeAlias = Mapping[str, Any]
#: Forms that lines share, and how long their text may be.
SHARED_FORMS: Final = 256
SHARED_CHARS: Final = 2000
_ANSWERED: Final = 200
#: How a task ends whose model nobody has: the orchestrator refuses it.
_UNKNOWN_CODES: Final = frozenset({"task.invalid", "task.failed"})


class LineForm(NamedTuple):
    """How a line's answer is to be written."""

    endpoint: str
    asked: AskedOfModels
    #: not as OpenAI has it
    is_plain: bool = False


@dataclass(frozen=True, slots=True)
class _EndpointForms:
    """What a request asks, and its whole answer."""

    asked: Callable[[object], AskedOfModels]
    body: Callable[[AskedOfModels, Sequence[LlmAnswer], int], Mapping[str, Any]]


_FORMS_OF: Final[Mapping[str, _EndpointForms]] = {
    "/v1/chat/completions": _EndpointForms(asked_of_chat, chat_body),
    "/v1/completions": _EndpointForms(asked_of_completion, completion_body),
    "/v1/embeddings": _EndpointForms(asked_of_embedding, embedding_body),
    "/v1/responses": _EndpointForms(asked_of_response, response_body),
}


_shared_forms: Final[dict[str, LineForm]] = {}


class BatchRequests:
    """Knows the requests of all endpoints.

    Args:
        models: what is known of the models of the mesh.
        delivered: is told which tasks' texts may go.
        spend: is told what was read and written for an access token.
    """

    def __init__(
        self,
        models: FindsModels,
        delivered: DeliveredAnswers,
        spend: SpendsTokens = spend_nothing,
    ) -> None:
        self._models, self._delivered, self._spend = models, delivered, spend

    def asked(self, endpoint: str, number: int, custom_id: str, body: object) -> AskedLine:
        """Return what a request asks for, or why it cannot be asked."""
        return asked_line(endpoint, number, custom_id, body, placed_strictly)

    async def answered(self, run: str, lines: Sequence[EndedLine]) -> list[AnswerLine]:
        """Return the lines that tell how requests were answered."""
        failed = [line for line in lines if any(not end.has_succeeded for end in line.ends)]
        names = {end.model for line in failed for end in line.ends}
        unknown = {name for name in names if await self._is_unknown(name)}
        return await asyncio.to_thread(_written, run, lines, unknown)

    async def delivered(self, lines: Sequence[EndedLine]) -> None:
        """Have it erased what was asked and answered: the answers are on the disk."""
        for line in lines:
            for end in line.ends:
                self._delivered.add(end.task_id, decoded(end.outcome.payload), has_key=False)

    def spent(self, token: str, *, read: int, written: int) -> None:
        """Count tokens of models for the access token of a batch."""
        self._spend(token, input_tokens=read, output_tokens=written)

    async def _is_unknown(self, name: str) -> bool:
        try:
            return await self._models.find(name) is None
        except D8Error:  # nobody can say
            return False


def asked_line(
    endpoint: str,
    number: int,
    custom_id: str,
    body: object,
    placed: Callable[[LlmTask], PlacedData],
) -> AskedLine:
    """Return what a request asks for, or why it cannot be asked.

    Args:
        placed: returns the data of a task with who may run it.
    """
    try:
        known = _FORMS_OF.get(endpoint)
        if known is None:
            raise InvalidTaskError(f"url: {endpoint[:80]!r} is not served here")
        asked = known.asked(body)
    except D8Error as error:
        return AskedLine(number, custom_id, error=error)
    tasks = tuple(replace(task, data=placed(task)) for task in asked.tasks)
    emptied = replace(asked, tasks=tuple(replace(task, data={}) for task in tasks))
    return AskedLine(number, custom_id, tasks, _shared(LineForm(endpoint, emptied)))


def _shared(form: LineForm) -> LineForm:
    """Return a form that is alike: nearly all lines of a batch have the same."""
    text = repr(form)
    if len(text) > SHARED_CHARS:
        return form
    if len(_shared_forms) >= SHARED_FORMS:
        _shared_forms.clear()
    return _shared_forms.setdefault(text, form)


def placed_strictly(task: LlmTask) -> PlacedData:
    """Return the data of a task that nobody listens to, for its model alone."""
    return {name: value for name, value in data_of(task).items() if name != "pieces"}


def _written(run: str, lines: Sequence[EndedLine], unknown: Collection[str]) -> list[AnswerLine]:
    now_at = int(time.time())
    return [_line(run, line, unknown, now_at) for line in lines]


def _line(run: str, line: EndedLine, unknown: Collection[str], now_at: int) -> AnswerLine:
    task_id = line.ends[0].task_id if line.ends else ""
    try:
        status, body = _ANSWERED, body_of(line, unknown, now_at)
    except D8Error as error:
        status, body = status_of(error), error_body(error)
    return answered(run, line.number, line.custom_id, status=status, task_id=task_id, body=body)


def body_of(line: EndedLine, unknown: Collection[str], now_at: int) -> Mapping[str, Any]:
    """Return the answer to a line as OpenAI has it.

    Args:
        unknown: models that nobody has.

    Raises:
        D8Error: there is none; the error says why.
    """
    answers = answers_of(line, unknown)
    form = form_of(line)
    try:
        return _FORMS_OF[form.endpoint].body(form.asked, answers, now_at)
    except Exception as error:  # a worker has made a result that is none: the other lines go on
        raise D8Error("the answer is not of the form that it must have") from error


def answers_of(line: EndedLine, unknown: Collection[str]) -> list[LlmAnswer]:
    """Return the answers of a line's tasks; raises as `body_of` does."""
    if line.error is not None:
        raise line.error
    asked = form_of(line).asked
    try:
        return [
            answer_of(end.task_id, task, end.outcome)
            for end, task in zip(line.ends, asked.tasks, strict=True)
        ]
    except D8Error as error:
        if asked.model in unknown and error.code in _UNKNOWN_CODES:
            raise ModelUnknownError(f"The model {asked.model!r} does not exist") from error
        raise
    except Exception as error:  # as above
        raise D8Error("the answer is not of the form that it must have") from error


def form_of(line: EndedLine) -> LineForm:
    """Return how the answer of a line that could be asked is to be written."""
    assert isinstance(line.form, LineForm)
    return line.form
