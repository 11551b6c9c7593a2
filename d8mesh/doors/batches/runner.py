"""Batches that run: each from its file to its answers, through any number of restarts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, Protocol, TypeVar

from d8mesh.core.protocol.messages import CANCELLED_STATE
from d8mesh.doors.batches.answer_lines import CANCELLED, EXPIRED, AnswerLine, unanswered
from d8mesh.doors.batches.asking import AskedLine, Asking, EndedLine, LineGroup, LinesAtOnce
from d8mesh.doors.batches.batch_folder import BatchFolder, BatchStatus, LlmBatch
from d8mesh.doors.batches.cutting import groups_of
from d8mesh.doors.batches.lines import LineFault, line_of, raw_lines
from d8mesh.doors.batches.record import AnswerRecord
from d8mesh.doors.batches.stored_files import FileFolder, StoredFile
from d8mesh.doors.batches.validation import look_at
from d8mesh.edge.logs import event
from d8mesh.errors import D8Error, DiskLowError
from d8mesh.nodes.client.aio.node import AsyncNode

#: Of one batch under way: enough for all slots of a large mesh, and little of anybody's memory.
BATCH_AT_ONCE: Final = LinesAtOnce(lines=2000, size_bytes=16 * 1024 * 1024)
#: Batches that run at once; the others wait for their turn.
BATCHES_AT_ONCE: Final = 4
#: How often a full disk is tried again.
FULL_DISK_S: Final = 5.0
#: Lines that are written at once when a batch ends early.
REST_LINES: Final = 1000
#: How often it is looked for files whose time is over.
FILE_SWEEP_S: Final = 600.0
OUTPUT_PURPOSE: Final = "batch_output"

_T = TypeVar("_T")
_log: Final = logging.getLogger("d8mesh.batches")


class AnswersRequests(Protocol):
    """Knows what the requests of the endpoints ask, and how their answers are written."""

    def asked(self, endpoint: str, number: int, custom_id: str, body: object) -> AskedLine:
        """Return what a request asks for, or why it cannot be asked."""

    async def answered(self, run: str, lines: Sequence[EndedLine]) -> list[AnswerLine]:
        """Return the lines that tell how requests were answered."""

    async def delivered(self, lines: Sequence[EndedLine]) -> None:
        """Have it erased what was asked and answered: the answers are in the files."""

    def spent(self, token: str, *, read: int, written: int) -> None:
        """Count tokens of models for the access token of a batch; "" for none."""


class BatchRunner:
    """Runs the batches of a folder.

    Args:
        source: of the tasks of a batch, as `Group.source` has it.

    Thread: the loop's; files are read and written on others.
    """

    def __init__(
        self,
        node: AsyncNode,
        files: FileFolder,
        batches: BatchFolder,
        requests: AnswersRequests,
        source: Callable[[LlmBatch], str],
    ) -> None:
        self._node, self.files, self.batches = node, files, batches
        self._requests, self._source = requests, source
        self._running: dict[str, tuple[_BatchRun, asyncio.Task[None]]] = {}
        self._turns = asyncio.Semaphore(BATCHES_AT_ONCE)
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go on with all that is not finished."""
        await asyncio.to_thread(self.batches.open)
        unfinished = [each for each in self.batches.listed() if not each.is_final]
        kept = [each for batch in unfinished for each in (batch.output_id, batch.error_id)]
        await asyncio.to_thread(self.files.open, kept)
        for batch in unfinished:
            self._begin(batch)
        self._sweeping = asyncio.create_task(self._sweep(), name="d8-files")

    async def add(self, batch: LlmBatch) -> None:
        """Run a new batch.

        Raises:
            DiskLowError: it cannot be written down.
        """
        await asyncio.to_thread(self.batches.write, batch)
        self.batches.add(batch)
        self._begin(batch)

    async def cancel(self, batch: LlmBatch) -> None:
        """Have a batch end early; what is answered stays."""
        running = self._running.get(batch.id)
        if running is not None:
            await running[0].cancel()

    async def close(self) -> None:
        """Stop; `start` of the next process goes on."""
        tasks = [task for _, task in self._running.values()]
        tasks += [self._sweeping] if self._sweeping else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, batch: LlmBatch) -> None:
        run = _BatchRun(
            self._node, self.files, self.batches, batch, self._requests, self._source(batch)
        )
        task = asyncio.create_task(self._run(run), name=f"d8-{batch.id}")
        self._running[batch.id] = run, task
        task.add_done_callback(lambda _: self._running.pop(batch.id, None))

    async def _run(self, run: _BatchRun) -> None:
        batch = run.batch
        try:
            await run.run(self._turns)
        except D8Error as error:  # this client has ended: the next process goes on
            event(_log, logging.WARNING, "batch.stopped", id=batch.id, why=str(error))
            return
        except Exception:
            _log.exception("batch %s has stopped; a restart goes on with it", batch.id)
            return
        counts = f"{batch.completed}+{batch.failed}/{batch.total}"
        event(_log, logging.INFO, "batch.end", id=batch.id, status=str(batch.status), lines=counts)

    async def _sweep(self) -> None:
        while True:
            self.files.expire(time.time(), in_use=self.batches.uses)
            await asyncio.sleep(FILE_SWEEP_S)


class _BatchRun:
    """One batch on its way."""

    def __init__(
        self,
        node: AsyncNode,
        files: FileFolder,
        batches: BatchFolder,
        batch: LlmBatch,
        requests: AnswersRequests,
        source: str,
    ) -> None:
        self._node, self._files, self._batches, self.batch = node, files, batches, batch
        self._requests = requests
        output, errors = files.path(batch.output_id), files.path(batch.error_id)
        self._paths = output, errors
        self._input = files.path(batch.input_file_id)
        self._record = AnswerRecord(output, errors, 0)
        self._redelivered: frozenset[int] = frozenset()
        self._ending = asyncio.Event()
        self._asking = Asking(
            node, BATCH_AT_ONCE, self._take, priority=batch.priority, source=source
        )
        self._writing = asyncio.Lock()
        if batch.status is BatchStatus.CANCELLING:
            self._ending.set()

    async def cancel(self) -> None:
        """Ask nothing more, once it is on the disk that somebody wished so."""
        if self.batch.status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
            self.batch.enter(BatchStatus.CANCELLING, time.time())
            await self._written()
            self._ending.set()

    async def run(self, turns: asyncio.Semaphore) -> None:
        """Bring it to its end, from wherever it is.

        Args:
            turns: taken while it asks; what is to end does not wait for one.
        """
        batch = self.batch
        if not batch.last_line and not await self._looked_at():
            return
        self._record = AnswerRecord(*self._paths, batch.last_line)
        try:
            await asyncio.to_thread(self._record.open)
            # whoever wrote those down may not have come to have them erased
            self._redelivered = frozenset(self._record.last_answered)
            self._tell_counts()
            if batch.finalizing_at is None:
                has_turn = await self._await_turn(turns)
                try:
                    await self._ask()
                finally:
                    if has_turn:
                        turns.release()
                await self._tell_rest()
                batch.finalizing_at = int(time.time())
                if batch.status is BatchStatus.IN_PROGRESS:
                    batch.status = BatchStatus.FINALIZING
            await self._finish()
        finally:
            await asyncio.to_thread(self._record.close)

    async def _looked_at(self) -> bool:
        """Look at the input; return whether there is something to ask."""
        batch = self.batch
        try:
            found = await asyncio.to_thread(look_at, self._input, batch.endpoint)
        except OSError as error:
            told = f"The file {batch.input_file_id} cannot be read: {error.strerror}."
            batch.errors = [{"code": "invalid_file", "line": None, "message": told, "param": None}]
            batch.enter(BatchStatus.FAILED, time.time())
        else:
            batch.total, batch.last_line, batch.model = found.count, found.last, found.model
            batch.errors = [dict(each) for each in found.faults]
            if batch.errors:
                batch.enter(BatchStatus.FAILED, time.time())
            elif batch.status is BatchStatus.VALIDATING:
                batch.enter(BatchStatus.IN_PROGRESS, time.time())
        await self._written()
        return not batch.errors

    # ------------------------------------------------------------------------ asking

    async def _await_turn(self, turns: asyncio.Semaphore) -> bool:
        """Return whether it has one now; False: it is cancelled or has expired before."""
        taking = asyncio.create_task(turns.acquire())
        ending = asyncio.create_task(self._ending.wait())
        left_s = max(0.0, self.batch.expires_at - time.time())
        try:
            await asyncio.wait(
                {taking, ending}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            if taking.done() and not taking.cancelled():
                turns.release()
            raise
        finally:
            ending.cancel()
            if not taking.done():
                taking.cancel()
        return taking.done() and not taking.cancelled()

    async def _ask(self) -> None:
        """Ask what is not answered, until that is done, the batch is cancelled or expires."""
        ender = asyncio.create_task(self._end_in_time(), name="d8-batch-end")
        try:
            if self._is_over:
                await self._asking.stop()
            await self._asking.run(self._groups())
        finally:
            ender.cancel()
            await asyncio.gather(ender, return_exceptions=True)

    @property
    def _is_over(self) -> bool:
        return self._ending.is_set() or time.time() >= self.batch.expires_at

    async def _end_in_time(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self.batch.expires_at - time.time())):
                await self._ending.wait()
        self._ending.set()
        await self._asking.stop()

    async def _groups(self) -> AsyncIterator[LineGroup]:
        """Yield what is to be asked; of a batch that is over, what may be under way from before."""
        found = self._read()
        try:
            while (group := await asyncio.to_thread(next, found, None)) is not None:
                last = group.lines[-1].number
                if self._is_over and group.lines[0].number > self.batch.asked_through:
                    return
                if last > self.batch.asked_through:
                    self.batch.asked_through = last
                    await self._written()
                yield group
        finally:
            with contextlib.suppress(ValueError):  # it runs on its thread: it ends with that
                found.close()

    def _read(self) -> Generator[LineGroup, None, None]:
        with self._input.open("rb") as stream:
            yield from groups_of(raw_lines(stream), self.batch.id, self._is_wanted, self._asked)

    def _is_wanted(self, number: int) -> bool:
        return not self._record.has(number) or number in self._redelivered

    def _asked(self, number: int, raw: bytes) -> AskedLine:
        line = line_of(number, raw, self.batch.endpoint)
        return self._requests.asked(self.batch.endpoint, number, line.custom_id, line.body)

    async def _take(self, lines: Sequence[EndedLine]) -> None:
        """Write down how lines ended; then they may be forgotten elsewhere."""
        told = lines
        if self._ending.is_set():  # what we have cancelled is told by `_tell_rest`
            told = [each for each in lines if not _is_cancelled(each)]
        answers = await self._requests.answered(self.batch.run, told)
        tokens = self._record.tokens
        read, written = tokens.input, tokens.output
        await self._patiently(partial(self._record.append, answers))
        if self.batch.token:
            read, written = tokens.input - read, tokens.output - written
            self._requests.spent(self.batch.token, read=read, written=written)
        self._tell_counts()
        await self._requests.delivered(lines)

    # ------------------------------------------------------------------------ the end

    async def _tell_rest(self) -> None:
        """Write down that what is not answered will not be."""
        if self._record.completed + self._record.failed >= self.batch.total:
            return
        code = CANCELLED
        if self.batch.status is not BatchStatus.CANCELLING:
            code, self.batch.expired_at = EXPIRED, int(time.time())
            await self._written()
        rest = self._rest(code)
        while lines := await asyncio.to_thread(lambda: list(islice(rest, REST_LINES))):
            await self._patiently(partial(self._record.append, lines))
        self._tell_counts()

    def _rest(self, code: str) -> Iterator[AnswerLine]:
        with self._input.open("rb") as stream:
            for number, raw in raw_lines(stream):
                if not self._record.has(number):
                    with contextlib.suppress(LineFault):
                        line = line_of(number, raw, self.batch.endpoint)
                        yield unanswered(self.batch.run, number, line.custom_id, code)

    async def _finish(self) -> None:
        """Show the files, then say how it ended."""
        batch, now_at = self.batch, time.time()
        output, errors = self._paths
        if batch.completed:
            await self._show(batch.output_id, output, "output", int(now_at))
        if batch.failed:
            await self._show(batch.error_id, errors, "error", int(now_at))
        if batch.status is BatchStatus.CANCELLING:
            batch.enter(BatchStatus.CANCELLED, now_at)
        elif batch.expired_at is not None:
            batch.status = BatchStatus.EXPIRED
        else:
            batch.enter(BatchStatus.COMPLETED, now_at)
        await self._written()

    async def _show(self, file_id: str, path: Path, what: str, at: int) -> None:
        file = StoredFile(
            id=file_id,
            size_bytes=path.stat().st_size,
            created_at=at,
            name=f"{self.batch.id}_{what}.jsonl",
            purpose=OUTPUT_PURPOSE,
            expires_at=at + self.batch.output_stays_s,
        )
        await self._patiently(partial(self._files.write_note, file))
        self._files.add(file)

    def _tell_counts(self) -> None:
        batch, record = self.batch, self._record
        batch.completed, batch.failed = record.completed, record.failed
        batch.usage = record.tokens.told() if record.completed else None

    async def _written(self) -> None:
        async with self._writing:
            await self._patiently(partial(self._batches.write, self.batch))

    async def _patiently(self, call: Callable[[], _T]) -> _T:
        """Return what a call that writes returns, once the disk has room for it."""
        is_told = False
        while True:
            try:
                return await asyncio.to_thread(call)
            except DiskLowError as error:
                if not is_told:
                    event(_log, logging.WARNING, "batch.disk", id=self.batch.id, why=str(error))
                is_told = True
                await asyncio.sleep(FULL_DISK_S)


def _is_cancelled(line: EndedLine) -> bool:
    is_any = any(end.outcome.state == CANCELLED_STATE for end in line.ends)
    return line.error is not None or is_any
