"""`recover`: what can be saved of a damaged journal or outbox, and what cannot, in words."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import filelock

from d8mesh.config import Config
from d8mesh.edge.sqlite.outbox import LOCK_NAME, OUTBOX_NAME
from d8mesh.edge.sqlite.recovery.mend import Mended, open_mended
from d8mesh.edge.sqlite.recovery.recover import Recovered, recover
from d8mesh.edge.terminal import as_json, say, tell
from d8mesh.errors import KeyFileError, WorkerError
from d8mesh.private import FILE_MODE
from d8mesh.words import tr, translated

JOURNAL: Final = Path("orchestrator") / "journal.db"
#: Ids and ranges told on the screen; the file beside the old journal has more.
TOLD: Final = 20


@dataclass(frozen=True, slots=True)
class OutboxState:
    """One worker's outbox: ``sound``, ``recovered``, ``in use`` or ``failed``."""

    folder: str
    outcome: str
    mended: Mended | None = None
    why: str = ""


def run(config: Config, options: argparse.Namespace) -> int:
    """Recover the journal and the outboxes of the data folder; 1 if there is
    none, or an outbox cannot be.

    Raises:
        JournalHeldError: an orchestrator runs on the journal.
        JournalBrokenError: the journal is of a newer version.
        JournalKeyError: its payloads are encrypted, and the key is missing, or is another one.
        JournalError: the disk is full, or does not give the file.
    """
    data = Path(config.data_dir)
    journal = recover(data / JOURNAL, _silent if options.json else _tell_stage)
    outboxes = list(_outboxes(data / "workers"))
    if options.json:
        say(as_json({"journal": asdict(journal), "outboxes": [_body(o) for o in outboxes]}))
    else:
        say("\n".join([*_words(journal), *(_line(each) for each in outboxes)]))
    if journal.outcome == "missing" and not outboxes:
        return 1  # nothing of ours is in that folder
    return 1 if any(each.outcome == "failed" for each in outboxes) else 0


def _tell_stage(text: str) -> None:
    tell(f"  {translated(text)} …")


def _silent(text: str) -> None:
    """Say nothing: JSON is alone on standard output."""


def _outboxes(workers: Path) -> Iterator[OutboxState]:
    for path in sorted(workers.glob(f"*/{OUTBOX_NAME}*")):
        if path.name not in (OUTBOX_NAME, f"{OUTBOX_NAME}.new"):
            continue
        folder = path.parent
        lock = filelock.FileLock(folder / LOCK_NAME, mode=FILE_MODE)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            yield OutboxState(str(folder), "in use")
            continue
        except OSError as error:  # such as that of a worker which the superuser started
            yield OutboxState(str(folder), "failed", why=error.strerror or str(error))
            continue
        try:
            outbox, mended = open_mended(folder)
            outbox.close()
            yield OutboxState(str(folder), "recovered" if mended else "sound", mended)
        except (WorkerError, KeyFileError) as error:
            yield OutboxState(str(folder), "failed", why=str(error))
        finally:
            lock.release()


def _body(state: OutboxState) -> dict[str, object]:
    body: dict[str, object] = {"folder": state.folder, "outcome": state.outcome}
    if state.mended is not None:
        body |= {
            "moved_to": str(state.mended.moved_to),
            "saved": state.mended.saved,
            "damaged": state.mended.damaged,
            "unreadable_pages": state.mended.damaged_pages,
        }
    return body | ({"error": state.why} if state.why else {})


def _line(state: OutboxState) -> str:
    if state.mended is None:
        why = translated(state.why) if state.why else tr(state.outcome)
        return tr("Outbox {folder}: {why}.", folder=state.folder, why=why)
    mended = state.mended
    return tr(
        "Outbox {folder}: {saved} results saved, {damaged} damaged, {pages} pages unreadable. "
        "Tasks of lost results are run again. The old file is {name}.",
        folder=state.folder,
        saved=mended.saved,
        damaged=mended.damaged,
        pages=mended.damaged_pages,
        name=mended.moved_to.name,
    )


def _words(journal: Recovered) -> Iterator[str]:
    path = journal.journal
    if journal.outcome == "missing":
        yield tr("There is no journal at {path}.", path=path)
        return
    if journal.outcome == "sound":
        yield tr(
            "The journal {path} is sound: every page was read, nothing was changed.", path=path
        )
        return
    yield tr("The journal {path} was recovered.", path=path)
    yield tr("The damaged file is now {path} (its -wal and -shm beside it).", path=journal.moved_to)
    yield tr(
        "Saved: {queued} tasks queued, {completed} completed, {failed} failed, "
        "{cancelled} cancelled.",
        queued=journal.queued,
        completed=journal.completed,
        failed=journal.failed,
        cancelled=journal.cancelled,
    )
    yield from _tables(journal)
    yield from _lost(tr("their data is lost, recorded as failed"), journal.lost_data)
    yield from _lost(tr("their result is lost, recorded as failed"), journal.lost_results)
    yield from _lost(tr("failed before, the reason is lost"), journal.lost_reasons)
    yield from _unsure(journal)
    yield tr("All of this, with all ids: {file}", file=Path(journal.moved_to).with_suffix(".json"))


def _tables(journal: Recovered) -> Iterator[str]:
    for name, table in journal.tables.items():
        bad = tr(", {count} damaged", count=table.damaged) if table.damaged else ""
        for first, last in table.unreadable[:TOLD]:
            end = last if last < 2**63 - 1 else tr("the end")
            bad += tr(", rows {first} to {last} unreadable", first=first, last=end)
        yield tr("  {table}: {count} rows", table=name, count=table.kept) + bad


def _unsure(journal: Recovered) -> Iterator[str]:
    """Yield what may be otherwise than it was."""
    if journal.unknown_count is None:
        yield tr("How many more tasks had been accepted is not known: the counts are damaged.")
    elif journal.unknown_count:
        yield tr(
            "{count} more tasks had been accepted that nothing is known of.",
            count=journal.unknown_count,
        )
    for low, high in journal.unknown_ids[:TOLD]:
        yield tr("  they may be among {low} to {high}", low=low, high=high)
    if journal.may_run_again:
        yield tr(
            "Outcomes are unreadable: of the {count} queued tasks some may have finished before; "
            "they run again.",
            count=journal.may_run_again,
        )
    for name in journal.renamed_sessions[:TOLD]:
        yield tr("The name of a client's session is lost: its tasks go on as {name}-…", name=name)
    if journal.has_new_identity:
        yield tr(
            "The orchestrator's id or secret is lost, it has new ones: results of tasks that are "
            "running now are refused, and these tasks run again."
        )
    if journal.ignored_log_pages:
        yield tr(
            "The log has {count} pages behind a break, which were not used: they are of a commit "
            "that was never finished, or the last changes before the damage.",
            count=journal.ignored_log_pages,
        )


def _lost(what: str, ids: list[str]) -> Iterator[str]:
    if ids:
        named = ", ".join(ids[:TOLD])
        if len(ids) > TOLD:
            named += tr(" and {count} more", count=len(ids) - TOLD)
        yield tr("{count} tasks: {what}: {ids}", count=len(ids), what=what, ids=named)
