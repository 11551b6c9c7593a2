"""Requests of language models as tasks: submitted, waited for, streamed, cancelled, delivered.

The only place that knows the life of such a request; the doors say what is asked and write what is
answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, TypeAlias

from d8mesh.core.protocol.chat import Origin
from d8mesh.core.protocol.model_names import plain_name
from d8mesh.doors.llm.asked import Caller, LlmAnswer, LlmTask
from d8mesh.doors.llm.delivered import DeliveredAnswers
from d8mesh.doors.llm.endings import named, tokens_of_result
from d8mesh.doors.llm.forms import StreamForm
from d8mesh.doors.llm.keys import RequestKeys
from d8mesh.doors.llm.said import SaidSoFar
from d8mesh.doors.llm.spending import SpendsTokens, spend_nothing
from d8mesh.doors.llm.streamed import Speaker, StreamedAnswer
from d8mesh.doors.llm.wanted import (
    FindsModels,
    check_models,
    digest_of_all,
    group_of,
)
from d8mesh.doors.llm.whole import WholeAnswer, WholePart
from d8mesh.doors.waiting import MAX_WAITS, Places, require_broker
from d8mesh.errors import FloodError, InvalidTaskError, NodeClosedError, RevokedError
from d8mesh.http.answers import Response
from d8mesh.nodes.client.aio.followed import FollowedTask
from d8mesh.nodes.client.aio.node import AsyncNode

#: Requests open at the same time, waiting or streaming; each costs some ten kilobytes.
MAX_CHATS: Final = 4096
#: Of one address: it cannot take the places of all others.
MAX_OF_ADDRESS: Final = MAX_CHATS * 3 // 4
#: A request may be of so many tasks.
MAX_TASKS: Final = 128

_OpenAnswer: TypeAlias = WholeAnswer | StreamedAnswer


class Chats:
    """Asks the mesh for the doors.

    Args:
        mesh: the client that asks.
        models: what is known of the models of the mesh.
        keeps_all: what was asked and answered is not erased once it is delivered.
        spend: is told what was read and written for an access token.

    Thread: the loop's.
    """

    def __init__(
        self,
        mesh: AsyncNode,
        models: FindsModels,
        *,
        keeps_all: bool = False,
        spend: SpendsTokens = spend_nothing,
    ) -> None:
        self._spend = spend
        self._mesh, self._models = mesh, models
        self._delivered = DeliveredAnswers(mesh, keeps_all=keeps_all)
        self._waits = Places(MAX_WAITS)
        self._keys = RequestKeys()
        self._open: dict[_OpenAnswer, Caller] = {}
        self._by_address: Counter[str] = Counter()
        self._is_ending = False

    @property
    def count(self) -> int:
        """How many requests are open."""
        return len(self._open)

    async def whole(self, caller: Caller, asked: Sequence[LlmTask]) -> list[LlmAnswer]:
        """Have these done, and return their answers in that order.

        Raises:
            D8Error: one of them cannot be, or did not end well; `task_id` names it.
        """
        whole = WholeAnswer(self._mesh.loop)
        await self._submit(caller, asked, whole)
        try:
            answers = await whole.answers()
        except BaseException:
            self._leave(whole, caller)
            raise
        finally:
            self._close(whole)
            self._note_end(whole, whole.parts, caller)
            self._delivered.add_ended(whole.parts, has_key=bool(caller.key))
        return answers

    async def stream(self, caller: Caller, asked: Sequence[LlmTask], form: StreamForm) -> Response:
        """Have these done, and return an answer that says what they say, while they say it.

        It returns when the first of them has said something, or all have ended: until then an error
        is raised, and has a status.

        Raises:
            D8Error: as of `whole`.
        """
        answer = StreamedAnswer(
            self._mesh.loop, form, lambda answer: self._stream_over(answer, caller)
        )
        await self._submit(caller, asked, answer)
        try:
            await answer.begun()
        except BaseException:
            answer.leave()
            raise
        response = Response(answer, content_type=form.media_type)
        ids = [each.task.id for each in answer.speakers]
        said = next((each.said for each in answer.speakers if each.said.origin), SaidSoFar())
        response.headers |= _told(ids, said.origin, said.model, asked[0].model)
        return response

    @staticmethod
    def headers(answers: Sequence[LlmAnswer]) -> dict[str, str]:
        """Return the headers that say which tasks gave an answer, and who did them."""
        if not answers:
            return {}
        first = answers[0]
        model = str(first.result.get("model") or "")
        return _told([each.task_id for each in answers], first.origin, model, first.model)

    def end(self) -> None:
        """The process ends: every open request is told which task goes on without it."""
        self._is_ending = True
        for answer in list(self._open):
            left = answer.left()
            ids = ", ".join(each.id for each in left if each.id)
            text = (
                f"the orchestrator's web process ends; task {ids} goes on: GET /api/tasks/"
                f"{ids if len(left) == 1 else 'ID'}/wait has its result, or the same request with "
                "its Idempotency-Key"
            )
            answer.fail(named(NodeClosedError(text), left[0].id if left else ""))
        self._delivered.tell()

    def end_token(self, token: str) -> None:
        """This access token is revoked: what is open for it ends with an error."""
        for answer, caller in list(self._open.items()):
            if caller.token == token:
                answer.fail(RevokedError("the access token of this request was revoked"))

    # ------------------------------------------------------------------------- submitting

    async def _submit(self, caller: Caller, asked: Sequence[LlmTask], answer: _OpenAnswer) -> None:
        """Submit what is asked, followed by the parts of `answer`, which counts as open then."""
        if self._is_ending:
            raise NodeClosedError("the orchestrator's web process ends: ask again")
        if not 0 < len(asked) <= MAX_TASKS:
            raise InvalidTaskError(f"a request is of 1 to {MAX_TASKS} answers, saw {len(asked)}")
        self._check_room(caller)
        await check_models(self._models, caller, asked)
        if not self._mesh.is_connected:
            await require_broker(self._mesh, self._waits)
        groups = [group_of(caller, each) for each in asked]
        followers = answer.followers_of(asked)
        tasks = list(map(FollowedTask, groups, followers))
        self._check_room(caller)
        self._open[answer] = caller
        self._by_address[caller.address] += 1
        is_heard = isinstance(answer, StreamedAnswer)
        if caller.key:
            answer.key, digest = self._keys.of(caller), digest_of_all(groups)
            self._mesh.followed.submit_keyed(tasks, answer.key, digest, is_heard=is_heard)
        else:
            self._mesh.followed.submit(tasks, is_heard=is_heard)

    def _check_room(self, caller: Caller) -> None:
        of_address = self._by_address[caller.address]
        if len(self._open) >= MAX_CHATS or of_address >= MAX_OF_ADDRESS:
            raise FloodError(
                f"{len(self._open)} requests are open, {of_address} of this address: at most "
                f"{MAX_CHATS} and {MAX_OF_ADDRESS}; come again"
            )

    # --------------------------------------------------------------------------- the end

    def _stream_over(self, answer: StreamedAnswer, caller: Caller) -> None:
        self._close(answer)
        self._leave(answer, caller)
        self._note_end(answer, answer.speakers, caller)
        self._delivered.add_ended(answer.speakers, has_key=bool(caller.key))

    def _note_end(
        self, answer: _OpenAnswer, parts: Sequence[WholePart | Speaker], caller: Caller
    ) -> None:
        if any(each.has_failed for each in parts):
            self._keys.failed(caller, answer.key)
        for result in [each.result for each in parts if caller.token and each.result is not None]:
            read, written = tokens_of_result(result)
            self._spend(caller.token, input_tokens=read, output_tokens=written)

    def _close(self, answer: _OpenAnswer) -> None:
        caller = self._open.pop(answer, None)
        if caller is not None:
            self._by_address[caller.address] -= 1
            if not self._by_address[caller.address]:
                del self._by_address[caller.address]

    def _leave(self, answer: _OpenAnswer, caller: Caller) -> None:
        """Nobody waits for what has not ended: it is cancelled, if it cannot be asked for again."""
        for task in answer.left():
            if self._is_ending:
                continue
            self._delivered.when_ended(task, has_key=bool(caller.key))
            if not caller.key:
                self._mesh.followed.cancel_soon(task)


def _told(
    ids: Sequence[str], origin: Origin | None, model: str, model_asked: str
) -> dict[str, str]:
    """Return the headers of an answer; what is not known yet is left out."""
    found = {"X-D8-Task": ",".join(ids)}
    if origin is not None:
        found |= {"X-D8-Machine": origin.machine, "X-D8-Service": origin.service}
    if model:
        is_other = plain_name(model) != plain_name(model_asked)
        found |= {"X-D8-Model": model, "X-D8-Fallback": "yes" if is_other else "no"}
    return {name: _header(value) for name, value in found.items() if value}


def _header(value: str) -> str:
    """Return a text that may be a header's value."""
    plain = value if value.isprintable() else "".join(each for each in value if each.isprintable())
    return plain.encode("latin-1", "replace").decode("latin-1")
