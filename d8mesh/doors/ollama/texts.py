"""The calls that ask models for texts and vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from d8mesh.core.protocol.chat import COMPLETION, EMBEDDING, INSERT, THINKING, TOOLS, VISION
from d8mesh.core.protocol.model_names import shown_name
from d8mesh.doors.llm.asked import LlmTask
from d8mesh.doors.llm.callers import caller_of
from d8mesh.doors.llm.catalogue import KnownModel, ModelCatalogue
from d8mesh.doors.llm.chats import Chats
from d8mesh.doors.ollama.answers import (
    TextLines,
    loaded_body,
    text_body,
    vector_body,
    vectors_body,
)
from d8mesh.doors.ollama.loading import ModelLoading
from d8mesh.doors.ollama.text_requests import AskedText
from d8mesh.doors.ollama.values import unknown_model
from d8mesh.doors.ollama.vector_requests import AskedVectors
from d8mesh.errors import ModelUnfitError
from d8mesh.http.answers import Response, answer
from d8mesh.http.off_loop import off_loop
from d8mesh.http.routes import Request

OLLAMA_DOOR: Final = "ollama"
#: Says which fields of a request were not applied.
IGNORED_HEADER: Final = "X-D8-Ignored"
#: Of that header: proxies refuse heads that are longer than a few thousand.
MAX_IGNORED_HEADER_CHARS: Final = 1000
EMBED_TASK_TYPE: Final = "embed"
#: A number of a vector takes about so many bytes in an answer.
NUMBER_BYTES: Final = 20
#: What Ollama calls that a model cannot do.
_UNFIT_WORDS: Final = {INSERT: "insert", THINKING: "thinking", VISION: "images"}


class TextCalls:
    """Answers ``/api/chat``, ``/api/generate``, ``/api/embed`` and ``/api/embeddings``."""

    def __init__(self, chats: Chats, catalogue: ModelCatalogue) -> None:
        self._chats, self._catalogue = chats, catalogue
        self._loading = ModelLoading(chats, catalogue)

    async def text(self, request: Request) -> Response:
        """Chat, generate, load or unload, as the body asks."""
        asked: AskedText = request.value
        caller = caller_of(request, OLLAMA_DOOR)
        known = await self._known(asked.model, () if asked.is_load else caller.fallbacks)
        if asked.is_unload:
            await self._loading.unload(caller, known)
        elif asked.is_load:
            await self._loading.load(caller, known, asked.data.get("keep_alive"))
        if asked.is_load:
            body = loaded_body(asked.model, is_chat=asked.is_chat, is_unload=asked.is_unload)
            return with_ignored(answer(body), asked.ignored)
        if not caller.fallbacks:  # else one of those may do
            refuse_unfit(known, asked)
        task = LlmTask(type=asked.type, data=asked.data, model=asked.model.strip())
        if asked.is_streamed:
            form = TextLines(asked.model, is_chat=asked.is_chat, is_raw=asked.is_raw)
            return with_ignored(await self._chats.stream(caller, [task], form), asked.ignored)
        answers = await self._chats.whole(caller, [task])
        completion = answers[0].completion
        assert completion is not None  # of a task that makes a text
        response = answer(
            text_body(asked.model, completion, is_chat=asked.is_chat, is_raw=asked.is_raw)
        )
        response.headers |= self._chats.headers(answers)
        return with_ignored(response, asked.ignored)

    async def vectors(self, request: Request) -> Response:
        """Make vectors of texts; of none, load the model."""
        asked: AskedVectors = request.value
        known = await self._known(asked.model)
        if known.lacks(EMBEDDING):
            raise ModelUnfitError(f'"{asked.model}" does not support embeddings')
        caller, model = caller_of(request, OLLAMA_DOOR), asked.model.strip()
        tasks = [LlmTask(type=EMBED_TASK_TYPE, data=data, model=model) for data in asked.datas]
        if not tasks:
            await self._loading.load(caller, known, asked.shared.get("keep_alive"))
        answers = await self._chats.whole(caller, tasks) if tasks else []
        made = [each.embeddings for each in answers if each.embeddings is not None]
        if asked.is_old:
            response = answer(vector_body(made))
        else:
            size = NUMBER_BYTES * sum(len(row) for each in made for row in each.vectors)
            response = await off_loop(
                size, lambda made: answer(vectors_body(asked.model, made)), made
            )
        response.headers |= self._chats.headers(answers)
        return with_ignored(response, asked.ignored)

    async def _known(self, name: str, fallbacks: Sequence[str] = ()) -> KnownModel:
        """Return the first that is there, of the model asked for and those that will do too."""
        for each in (name, *fallbacks):
            known = await self._catalogue.find(each)
            if known is not None:
                return known
        raise unknown_model(name)


def refuse_unfit(known: KnownModel, asked: AskedText) -> None:
    """Refuse, in Ollama's words, what it is known that the model cannot do.

    Raises:
        ModelUnfitError: it says what.
    """
    for need in asked.needs:
        if not known.lacks(need):
            continue
        if need == TOOLS:
            full = f"registry.ollama.ai/library/{shown_name(asked.model)}"
            raise ModelUnfitError(f"{full} does not support tools")
        words = _UNFIT_WORDS.get(need, "chat" if asked.is_chat else "generate")
        if need != COMPLETION or EMBEDDING in known.can:
            raise ModelUnfitError(f'"{asked.model}" does not support {words}')


def with_ignored(response: Response, ignored: Iterable[str]) -> Response:
    """Return the answer with the header that names what was not applied, if anything was."""
    text = ", ".join(dict.fromkeys(ignored))
    if text:
        plain = text.encode("ascii", "replace").decode("ascii")
        printable = "".join(each for each in plain if each.isprintable())
        response.headers[IGNORED_HEADER] = printable[:MAX_IGNORED_HEADER_CHARS]
    return response
