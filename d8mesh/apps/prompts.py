"""The demo's prompts: which model answers them, and their answers as they grow."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from d8mesh.apps.following import Following, Submits, TaskListener
from d8mesh.apps.local_model import NotInstalledError, install
from d8mesh.backends import embedded, ollama
from d8mesh.config import Config
from d8mesh.edge.terminal import say, width
from d8mesh.errors import TaskError, WaitTimeoutError

PROMPTS: Final = (
    "Name three fruits.",
    "What is a Raspberry Pi, in one sentence?",
)
#: Enough for each of them; a small model does not always come to an end by itself.
ANSWER_TOKENS: Final = 120
#: Small models go astray at the usual one.
CALM: Final = 0.2
ANSWER_INDENT: Final = "    "
#: Lines are not made narrower than this, whatever the terminal says.
MIN_ANSWER_COLUMNS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptModel:
    """The model that is asked, and where it is; or why there is none."""

    name: str = ""
    where: str = ""
    why_not: str = ""


def model_for(config: Config, tell: Callable[[str], None]) -> PromptModel:
    """Return the model of an Ollama that answers, else the embedded one, installed if need be.

    Args:
        tell: told what is fetched, and how long it took.
    """
    if (service := ollama.backend_of(config)) is not None:
        seen = service.probe()
        if seen.is_up:
            return PromptModel(name=seen.default, where=f"the Ollama at {seen.url}")
    local = embedded.backend_of(config)
    if local is None or not local.probe().is_up:
        try:
            install(tell)
        except NotInstalledError as error:
            return PromptModel(why_not=f"no Ollama answers, and the small model: {error}")
        local = embedded.backend_of(config)
    offer = local.probe() if local is not None else None
    if offer is None or not offer.is_up:
        why = offer.reason if offer is not None else "D8_MODELS_DIR=none"
        return PromptModel(why_not=f"no Ollama answers, and no small model: {why}")
    return PromptModel(name=offer.default, where="llama.cpp in the worker")


def ask_all(client: Submits, model: PromptModel, *, within_s: float) -> int:
    """Ask each of `PROMPTS`, print the answers as they grow; return how many were answered."""
    answered = 0
    say("")
    _say_fitted("", f"Now {len(PROMPTS)} real prompts, to {model.name} ({model.where}):")
    for prompt in PROMPTS:
        say("")
        _say_fitted("  ", f"> {prompt}")
        messages = [{"role": "user", "content": prompt}]
        data = {
            "messages": messages,
            "model": model.name,
            "temperature": CALM,
            "max_tokens": ANSWER_TOKENS,
        }
        began = time.monotonic()
        answer = _GrowingAnswer()
        following = Following(client, "agent_action", data)
        try:
            result = following.result(began + within_s, answer)
        except (TaskError, WaitTimeoutError) as error:
            answer.finish("")
            _say_fitted("  ", f"(no answer: {error})")
            continue
        answered += 1
        answer.finish(str(result.get("output") or ""))
        _say_fitted("  ", _told(result, answer, began))
    return answered


class _GrowingAnswer(TaskListener):
    """Prints an answer word by word, in lines that fit the terminal."""

    def __init__(self) -> None:
        columns = width()
        self._columns = None if columns is None else max(columns, MIN_ANSWER_COLUMNS)
        self._said = ""
        self._word = ""
        self._at = 0
        self.first_at = self.last_at = 0.0

    def piece(self, piece: object) -> None:
        if isinstance(piece, str):
            self.last_at = time.monotonic()
            self.first_at = self.first_at or self.last_at
            self._grow(piece)

    def restarted(self) -> None:
        super().restarted()
        self._said = self._word = ""
        self._at, self.first_at = 0, 0.0

    def finish(self, text: str) -> None:
        """Print what was not heard of the whole answer, and end its line."""
        if text.startswith(self._said):
            self._grow(text[len(self._said) :])
        self._put(self._word)
        self._word = ""
        self.end_line()

    def _grow(self, text: str) -> None:
        self._said += text
        for character in text:
            if character in " \n":
                self._put(self._word)
                self._word = ""
                self._gap(character)
            else:
                self._word += character

    def _gap(self, character: str) -> None:
        if character == "\n":
            self.print("\n")
            self._at = 0
        elif self._at:
            self._word = " "

    def _put(self, word: str) -> None:
        if not word.strip():
            return
        if self._columns is not None and self._at and self._at + len(word) > self._columns:
            self.print("\n")
            self._at, word = 0, word.lstrip()
        if not self._at:
            self.print(ANSWER_INDENT)
            self._at, word = len(ANSWER_INDENT), word.lstrip()
        self.print(word)
        self._at += len(word)


def _say_fitted(indent: str, text: str) -> None:
    """Print one paragraph, in lines that fit the terminal."""
    columns = width()
    if columns is not None:
        text = textwrap.fill(
            text,
            max(columns, MIN_ANSWER_COLUMNS),
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    say(text if columns is not None else indent + text)


def _told(result: Mapping[str, Any], answer: _GrowingAnswer, began: float) -> str:
    """Say how fast it came, and from where."""
    usage = result.get("usage") or {}
    tokens = int(usage.get("completion_tokens") or 0)
    growing_s = answer.last_at - answer.first_at
    rate = f"{(tokens - 1) / growing_s:.0f} tokens/s, " if tokens > 1 and growing_s > 0 else ""
    first = f"first after {answer.first_at - began:.1f} s" if answer.first_at else "no stream"
    where = result.get("machine") or result.get("worker_id") or "?"
    kind = f", {result['backend']}" if result.get("backend") else ""
    return f"({result.get('model')} on {where}{kind}: {tokens} tokens, {rate}{first})"
