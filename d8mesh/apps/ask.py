"""The command `ask`: one question to a model of the mesh, its answer as it comes."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from d8mesh.apps.capabilities import LLM_TYPE, can
from d8mesh.apps.following import Following, Submits, TaskListener, tell_it_goes_on
from d8mesh.apps.work import connected
from d8mesh.apps.workers import say_who_is_there
from d8mesh.config import Config
from d8mesh.core.protocol.model_names import nearest, plain_name
from d8mesh.core.protocol.wish import INTERACTIVE_PRIORITY
from d8mesh.edge.terminal import as_json, say, tell
from d8mesh.errors import BackendUnavailableError, ConfigError, D8Error, TaskError, WaitTimeoutError
from d8mesh.program import command_name
from d8mesh.words import tr, translated

OK: Final = 0
FAILED: Final = 1
#: A worker that has just started finds its Ollama within this time.
NO_WORKER_S: Final = 12.0
#: How often the workers are asked for meanwhile.
WORKERS_LOOK_S: Final = 0.5

TaskData = dict[str, Any]


class Asks(Submits, Protocol):
    """What this command needs of a client."""

    def ask(self, what: str, args: Mapping[str, object], /) -> TaskData:
        """Ask the orchestrator something."""


def run(config: Config, options: argparse.Namespace) -> int:
    """Print a model's answer; return the exit code.

    Raises:
        ConfigError: there is no question.
        D8Error: no orchestrator or no worker with a model was found, or the answer came not in
            time.
    """
    prompt = question(options.prompt)
    with connected(config, options.timeout_s) as (client, until):
        return run_with(client, prompt, options, until)


def run_with(client: Asks, prompt: str, options: argparse.Namespace, until: float | None) -> int:
    """Do what `run` does with a client that is there."""
    await_model(client, until)
    data = data_of(prompt, options)
    answer = _PrintedAnswer(is_quiet=options.json)
    following = Following(client, LLM_TYPE, data, priority=INTERACTIVE_PRIORITY)
    task_id = following.task.id
    try:
        result = following.result(until, answer)
    except (KeyboardInterrupt, WaitTimeoutError) as error:
        answer.end_line()
        tell_it_goes_on(following.task)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise WaitTimeoutError(
            f"there was no whole answer within {options.timeout_s:g} s (--timeout)"
        ) from error
    except TaskError as error:
        answer.end_line()
        if options.json:
            say(as_json({"task_id": task_id, "error": str(error), "code": error.code}))
        tell(tr("error: task {id}: {why}", id=task_id, why=translated(str(error))))
        return FAILED
    if options.json:
        say(as_json({"task_id": task_id, **result}))
    else:
        answer.whole(str(result.get("output") or ""))
    _tell_who(client, result, options.models or [name for name in (options.model,) if name])
    return OK


def data_of(prompt: str, options: argparse.Namespace) -> TaskData:
    """Return the task's data."""
    messages = [{"role": "system", "content": options.system}] if options.system else []
    wish = {"model": options.model, "models": options.models, "cloud": options.cloud}
    return {
        "messages": [*messages, {"role": "user", "content": prompt}],
        **{name: value for name, value in wish.items() if value},
    }


def question(words: list[str]) -> str:
    """Return the question: the words given, with ``-`` for what is piped in.

    Raises:
        ConfigError: there is none.
    """
    is_piped = sys.stdin is not None and not sys.stdin.isatty()
    given = " ".join(word for word in words if word != "-").strip()
    piped = ""
    if "-" in words or (not words and is_piped):
        try:
            piped = sys.stdin.buffer.read().decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ConfigError(f"standard input: expected UTF-8 ({error.reason})") from error
    prompt = "\n\n".join(part for part in (given, piped) if part)
    if not prompt:
        raise ConfigError(f'there is no question: `{command_name()} ask "Hello"`, or pipe one in')
    return prompt


def await_model(client: Asks, until: float | None) -> None:
    """Return when a worker of the mesh offers language models; say so while none does.

    Args:
        until: monotonic seconds when waiting is over; at the latest after `NO_WORKER_S`.

    Raises:
        BackendUnavailableError: there is none.
    """
    last = time.monotonic() + NO_WORKER_S
    last = last if until is None else min(last, until)
    is_told = False
    while True:
        workers = client.ask("workers", {})["workers"]
        if any(can(worker, LLM_TYPE) for worker in workers):
            return
        if not is_told:
            is_told = True
            tell(tr("no worker of the mesh has a language model now"))
            for line in say_who_is_there(workers):
                tell(line)
            wait_s = f"{max(0.0, last - time.monotonic()):.0f}"
            tell(tr("waiting {seconds} s for one to come", seconds=wait_s))
        if time.monotonic() >= last:
            raise BackendUnavailableError("no worker of the mesh has a language model")
        time.sleep(min(WORKERS_LOOK_S, max(0.0, last - time.monotonic())))


class _PrintedAnswer(TaskListener):
    """Prints an answer as it comes, each part once."""

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._said = ""
        self._is_whole = True

    def piece(self, piece: object) -> None:
        if isinstance(piece, str):
            self._said += piece
            if not self._is_quiet:
                self.print(piece)

    def restarted(self) -> None:
        super().restarted()
        self._said, self._is_whole = "", True

    def missed(self, count: int | None) -> None:
        super().missed(count)  # here: the whole answer comes only if the model ends it
        self._is_whole = False

    def whole(self, text: str) -> None:
        """Print what of the whole answer was not heard."""
        if self._is_whole and text.startswith(self._said):
            self.print(text[len(self._said) :])
        elif not self._is_whole or text.strip() != self._said.strip():
            self.end_line()
            tell(tr("(a part was not heard; the whole answer:)"))
            self.print(text)
        self.end_line()


def _tell_near(client: Asks, wished: Sequence[str]) -> None:
    """Say which models may have been meant by names that none of the mesh has."""
    with contextlib.suppress(D8Error):  # the answer is there already
        known = [name for each in client.ask("models", {})["models"] for name in each["names"]]
        for name in wished:
            if near := nearest(name, known):
                tell(tr("no service has {model}; did you mean {near}?", model=name, near=near))


def _tell_who(client: Asks, result: Mapping[str, Any], wished: Sequence[str]) -> None:
    model = str(result.get("model") or "")
    where = str(result.get("machine") or result.get("worker_id") or "?")
    tokens, seconds = result.get("tokens_used"), result.get("duration_s")
    if wished and model and plain_name(model) not in map(plain_name, wished):
        names = ", ".join(wished)
        tell(tr("no machine could answer with {wished} now: another model did", wished=names))
        _tell_near(client, wished)
    if result.get("is_cloud") is True:
        tell(tr("answered in the cloud, by {machine}", machine=result.get("machine") or "?"))
    told = {"model": model or "?", "machine": where, "seconds": seconds, "tokens": tokens}
    tell(tr("({model} on {machine}, {seconds} s, {tokens} tokens)", **told))
