"""The command `batch`: many prompts from a file, an answer for each into another.

All are durable tasks: whoever stops waiting, and gives the same command later, is told what came
meanwhile, and nothing is asked twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from d8mesh.apps.batch_input import STDIN, AskedRow, BatchInput, RowFault, Wishes
from d8mesh.apps.batch_lines import RowRequests, WrittenLine, is_failed
from d8mesh.apps.batch_output import INPUT_ORDER, AnswersOut, without_failures
from d8mesh.apps.batch_progress import BatchProgress, spoken
from d8mesh.apps.batch_state import RunState, held, new_state, ranges_of, save, state_of
from d8mesh.apps.work import SILENCE_S, connected
from d8mesh.config import Config
from d8mesh.core.protocol.model_names import nearest, plain_name
from d8mesh.core.protocol.source import TaskSource
from d8mesh.doors.batches.asking import AskedLine, Asking, EndedLine, LineGroup, LinesAtOnce
from d8mesh.doors.batches.cutting import groups_of
from d8mesh.doors.llm.catalogue import ModelCatalogue
from d8mesh.doors.llm.delivered import DeliveredAnswers
from d8mesh.edge.terminal import as_json, say, tell
from d8mesh.errors import ConfigError, D8Error, WaitTimeoutError
from d8mesh.nodes.client.aio.node import AsyncNode
from d8mesh.nodes.client.closing import CLOSE_S
from d8mesh.nodes.client.results import decoded
from d8mesh.program import command_name
from d8mesh.words import tr

OK: Final = 0
FAILED: Final = 1
#: All is submitted as soon as the orchestrator takes it: then it has it, whatever happens here.
ALL_AT_ONCE: Final = LinesAtOnce(lines=10**9, size_bytes=10**15)
#: An orchestrator that is there says sooner why a task waits.
REASON_ANSWER_S: Final = 2.0
#: Models of the input that are looked for before anything is sent.
LOOKED_FOR: Final = 16
_NUMBERS: Final = re.compile(r"\d+")
BATCH_COMMAND: Final = "batch"


def run(config: Config, options: argparse.Namespace) -> int:
    """Answer what the options name; return the exit code: 1 if an answer is a failure.

    Raises:
        ConfigError: the input is wrong, or the output belongs to something else.
        D8Error: no orchestrator was found, or the disk is full.
    """
    out = None if options.out == STDIN else Path(options.out)
    if out is None and options.retry_failed:
        raise ConfigError("--retry-failed: expected --out with the file of an earlier batch")
    if out is not None:
        _check_place(out, options.input)
    with ExitStack() as stack:
        given = stack.enter_context(contextlib.closing(BatchInput(options.input, wishes(options))))
        if out is not None:
            stack.enter_context(held(out))
        return _BatchRunning(config, options, given, out).answer()


def _check_place(out: Path, given: str) -> None:
    if given != STDIN and out.absolute() == Path(given).absolute():
        raise ConfigError(f"--out {out}: that is the input; expected another file")
    if out.is_dir() or not out.absolute().parent.is_dir():
        what = "that is a folder" if out.is_dir() else "there is no such folder"
        raise ConfigError(f"--out {out}: {what}; expected a file in a folder that is there")


def wishes(options: argparse.Namespace) -> Wishes:
    """Return what the options say for all rows.

    Raises:
        ConfigError: the schema is none.
    """
    schema = None
    if options.schema is not None:
        try:
            schema = json.loads(options.schema.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"--schema {options.schema}: it cannot be read ({error})") from error
        if not isinstance(schema, dict):
            raise ConfigError(f"--schema {options.schema}: expected a JSON schema, an object")
    return Wishes(
        model=options.model,
        system=options.system,
        prompt=options.prompt,
        max_tokens=options.max_tokens,
        schema=schema,
    )


class _BatchRunning:
    """One run of the command."""

    def __init__(
        self, config: Config, options: argparse.Namespace, given: BatchInput, out: Path | None
    ) -> None:
        self._config, self._options, self._given, self._out = config, options, given, out
        self._models = options.models or [name for name in (options.model,) if name]
        self._named: set[str] = set(self._models)
        self._begun_at = time.monotonic()
        self._heard_at = self._begun_at

    def answer(self) -> int:
        """Answer all rows; return the exit code."""
        options = self._options
        draft = RowRequests("0", self._models, options.cloud or "")
        count, digest = self._given.checked(lambda row: self._check(draft, row))
        state = self._state(digest, count)
        self._requests = RowRequests(state.run, self._models, options.cloud or "")
        with ExitStack() as stack:
            answers = self._opened(count, stack)
            if options.retry_failed and answers.failed:
                answers.close()
                self._again(state, list(answers.failed_numbers()))
                answers = self._opened(count, stack)
            if answers.done:
                tell(tr("{done} of {count} are answered already", done=answers.done, count=count))
            if not answers.is_complete:
                with connected(self._config, options.timeout_s) as (client, until):
                    tell_unknown(client, self._named)
                    left_s = None if until is None else until - time.monotonic()
                self._answer_rest(state, answers, left_s)
            return self._end(answers)

    def _check(self, draft: RowRequests, row: AskedRow) -> None:
        """Look at a row before anything is sent."""
        if (error := draft.asked(row).error) is not None:
            raise RowFault(str(error))
        model = row.body.get("model")
        if isinstance(model, str) and len(self._named) < LOOKED_FOR:
            self._named.add(model)

    def _state(self, digest: str, count: int) -> RunState:
        options = self._options
        told = {
            "model": options.model,
            "models": ",".join(options.models),
            "cloud": options.cloud or "",
            "system": options.system,
            "prompt": options.prompt,
            "max-tokens": str(options.max_tokens or ""),
            "schema": "" if options.schema is None else options.schema.read_text("utf-8"),
            "order": options.order,
            "priority": str(options.priority),
        }
        if self._out is None:
            return new_state(digest, count, told)
        state = state_of(self._out, digest, count, told)
        if state is None:
            state = new_state(digest, count, told)
            save(self._out, state)
        return state

    def _opened(self, count: int, stack: ExitStack) -> AnswersOut:
        is_ordered = self._options.order == INPUT_ORDER
        answers = AnswersOut(self._out, count, is_ordered=is_ordered, is_failed=is_failed)
        stack.callback(answers.close)
        answers.open()
        return answers

    def _again(self, state: RunState, numbers: list[int]) -> None:
        """Have these rows asked again, which were answered with a failure."""
        assert self._out is not None
        is_ordered = self._options.order == INPUT_ORDER
        without_failures(self._out, is_failed, is_ordered=is_ordered)
        state.retries.append(ranges_of(numbers))
        save(self._out, state)

    # ------------------------------------------------------------------------ asking

    def _answer_rest(self, state: RunState, answers: AnswersOut, left_s: float | None) -> None:
        """Ask what is not answered, and write what comes."""
        try:
            asyncio.run(self._ask_all(state, answers, left_s))
        except (KeyboardInterrupt, D8Error):
            self._tell_going_on(answers)
            raise

    async def _ask_all(self, state: RunState, answers: AnswersOut, left_s: float | None) -> None:
        node = AsyncNode(self._config, endpoint=None, url=None)
        try:
            with BatchProgress(answers.count, answers.done, answers.failed) as progress:
                async with asyncio.timeout(left_s):
                    for key, rows in state.rounds():
                        await self._ask(node, answers, progress, key, self._left(state, rows))
        except TimeoutError:
            raise WaitTimeoutError(
                f"not all was answered within {self._options.timeout_s:g} s (--timeout)"
            ) from None
        finally:
            with contextlib.suppress(D8Error):
                await node.close(CLOSE_S)

    def _left(self, state: RunState, rows: frozenset[int] | None) -> frozenset[int] | None:
        """Return the rows of a round that no later one has; None: all."""
        later = [each for _, each in state.rounds() if each is not None]
        if rows is None:
            taken = frozenset().union(*later)
            return None if not taken else frozenset(range(1, state.count + 1)) - taken
        after = later[later.index(rows) + 1 :]
        return rows.difference(*after)

    async def _ask(
        self,
        node: AsyncNode,
        answers: AnswersOut,
        progress: BatchProgress,
        key: str,
        wanted: frozenset[int] | None,
    ) -> None:
        """Ask the rows of one round."""
        catalogue = ModelCatalogue(node)
        delivered = DeliveredAnswers(node, keeps_all=self._config.keep_chats)
        is_given_up = False

        async def take(lines: Sequence[EndedLine]) -> None:
            if is_given_up:
                return
            self._heard_at = time.monotonic()
            unknown = await _unknown(catalogue, lines)
            written = await asyncio.to_thread(self._write, answers, lines, unknown)
            failed = sum(line.is_failed for line in written)
            progress.advance(len(written), failed, sum(line.tokens for line in written))
            for end in (end for line in lines for end in line.ends):
                delivered.add(end.task_id, decoded(end.outcome.payload), has_key=False)

        source = TaskSource(BATCH_COMMAND).text()
        asking = Asking(node, ALL_AT_ONCE, take, priority=self._options.priority, source=source)
        looking = asyncio.create_task(self._look(node, asking, progress))
        running = asyncio.create_task(asking.run(_grouped(self._groups(answers, key, wanted))))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            if self._out is None:  # nobody could fetch it
                is_given_up = True  # that all this is cancelled now is no answer
                await asking.stop()  # before the end of `run`, which knows what is under way
            raise
        finally:
            running.cancel()
            await asyncio.wait([running])
            looking.cancel()
            delivered.tell()

    def _groups(
        self, answers: AnswersOut, key: str, wanted: frozenset[int] | None
    ) -> Generator[LineGroup, None, None]:
        rows = (
            (number, raw)
            for number, raw in self._given.rows()
            if wanted is None or number in wanted
        )
        yield from groups_of(rows, key, lambda n: not answers.has(n), self._asked)

    def _asked(self, number: int, raw: bytes) -> AskedLine:
        return self._requests.asked(self._given.row(number, raw))

    def _write(
        self, answers: AnswersOut, lines: Sequence[EndedLine], unknown: frozenset[str]
    ) -> list[WrittenLine]:
        now_at = int(time.time())
        written = [self._requests.written(line, unknown, now_at) for line in lines]
        answers.add([(line.number, line.content) for line in written])
        return written

    async def _look(self, node: AsyncNode, asking: Asking, progress: BatchProgress) -> None:
        """Say why nothing comes, each reason once."""
        reasons: set[str] = set()
        while True:
            await asyncio.sleep(SILENCE_S)
            task_id = asking.waiting_id
            if time.monotonic() - self._heard_at < SILENCE_S or not task_id:
                continue
            try:
                told = await node.ask("status", {"id": task_id}, REASON_ANSWER_S)
                reason = str(told.get("reason") or "")
            except D8Error as error:
                reason = str(error)
            kind = _NUMBERS.sub("", reason)  # how many wait before it changes all the time
            if reason and kind not in reasons:
                reasons.add(kind)
                progress.why(reason)

    # ------------------------------------------------------------------------ the end

    def _tell_going_on(self, answers: AnswersOut) -> None:
        done, count = answers.done, answers.count
        tell(tr("{done} of {count} are answered", done=done, count=count))
        if self._out is None:
            tell(tr("what was still asked is cancelled: with --out FILE it goes on without you"))
            return
        tell(tr("what was sent goes on without you; the same command again fetches it"))
        given = self._options.input
        tell(f"  {command_name()} batch {given} --out {self._out} …")

    def _end(self, answers: AnswersOut) -> int:
        """Say how it ended; return the exit code."""
        seconds = time.monotonic() - self._begun_at
        where = "" if self._out is None else str(self._out)
        told = {
            "lines": answers.count,
            "completed": answers.done - answers.failed,
            "failed": answers.failed,
            "out": where,
            "seconds": round(seconds, 1),
        }
        if self._options.json and self._out is not None:
            say(as_json(told))
        done, failed = answers.done - answers.failed, answers.failed
        took = spoken(seconds)
        tell(tr("{done} answered, {failed} failed, {time}", done=done, failed=failed, time=took))
        if failed and self._out is not None:
            tell(tr("{out} says why they failed; --retry-failed asks them again", out=where))
        return FAILED if failed else OK


def tell_unknown(client: Any, named: set[str]) -> None:
    """Warn of models that nobody has now."""
    with contextlib.suppress(D8Error):
        known = [name for each in client.ask("models", {})["models"] for name in each["names"]]
        plain = set(map(plain_name, known))
        for name in sorted(named):
            if known and plain_name(name) not in plain:
                near = nearest(name, known)
                tell(
                    tr("no service has {model}; did you mean {near}?", model=name, near=near)
                    if near
                    else tr("no service has {model} now", model=name)
                )


async def _unknown(catalogue: ModelCatalogue, lines: Sequence[EndedLine]) -> frozenset[str]:
    """Return which models of failed lines nobody has."""
    failed = [line for line in lines if any(not end.has_succeeded for end in line.ends)]
    found: set[str] = set()
    for name in {end.model for line in failed for end in line.ends}:
        with contextlib.suppress(D8Error):
            if await catalogue.find(name) is None:
                found.add(name)
    return frozenset(found)


async def _grouped(groups: Generator[LineGroup, None, None]) -> AsyncIterator[LineGroup]:
    """Yield groups that are read on a thread."""
    try:
        while (group := await asyncio.to_thread(next, groups, None)) is not None:
            yield group
    finally:
        with contextlib.suppress(ValueError):  # it runs on its thread: it ends with that
            groups.close()
