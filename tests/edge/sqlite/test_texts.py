"""What was erased is nowhere in the file, however its pages were filled and moved about."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from d8mesh.core.broker.store import DetailsOf, EndOf, FinishedTask, OutcomesOf, TaskDetails
from d8mesh.core.protocol.task import (
    Closed,
    Completed,
    Erased,
    Fact,
    Failed,
    Pruned,
    Requeued,
    Spec,
    Submitted,
)
from d8mesh.edge.sqlite import Journal

MARK = b"SECRET-MARKER"
SESSIONS = [f"{number:016d}" for number in range(4)]
OF_DOOR = Spec("agent_action", 8, 3, source="ollama 127.0.0.1 curl/8.5")
ECHO = Spec("echo", 5, 3)


def told(dice: random.Random) -> bytes:
    """Return a text full of marks: of a few bytes, of a page, of many pages."""
    size = dice.choice((20, 100, 400, 1500, 4000, 9000))
    return (MARK * (size // len(MARK) + 1))[:size]


def wipe(journal: Journal) -> bool:
    """Do both steps of it."""
    return [journal.wipe(), journal.wipe()] == [False, True]


class Chats:
    """Tasks of doors and of others, in a journal, as they come, end and are pruned."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.path = folder / "journal.db"
        self.journal = Journal(self.path, checkpoint_pages=50)
        self.journal.restore()
        self.next = dict.fromkeys(SESSIONS, 0)
        self.open: list[tuple[str, int, int]] = []
        self.ended: list[str] = []
        self.closed: list[tuple[str, int, int]] = []

    def step(self) -> None:
        """Commit what comes and ends in one turn."""
        dice, facts = self.dice, list[Fact]()
        for _ in range(dice.randint(1, 4)):
            session, count = dice.choice(SESSIONS), dice.choice((1, 1, 1, 5, 40))
            first = self.next[session]
            self.next[session] += count
            is_of_door = dice.random() < 0.7
            texts = [told(dice) if is_of_door else dice.randbytes(50) for _ in range(count)]
            facts.append(Submitted(session, first, OF_DOOR if is_of_door else ECHO, texts, 1.0))
            if is_of_door:
                self.open.append((session, first, count))
        dice.shuffle(self.open)
        while len(self.open) > 5:
            session, first, count = self.open.pop()
            ids = [f"{session}-{n}" for n in range(first, first + count)]
            texts = [told(dice) for _ in ids]
            why = MARK.decode()
            facts.append(Requeued("w", ids, [1] * count, why, 2.0, traceback=f"line\n{why}"))
            if dice.random() < 0.8:
                facts.append(Completed("w", ids, [2] * count, texts, 3.0))
            else:
                facts.append(Failed("w", ids, [2] * count, texts, 3.0, why))
            facts.append(Closed([(session, first)]))
            self.ended += ids
            self.closed.append((session, first, count))
        self.journal.append(facts)

    def erase(self, count: int) -> None:
        """Erase some tasks that have ended, in any order."""
        self.dice.shuffle(self.ended)
        ids, self.ended = self.ended[:count], self.ended[count:]
        self.journal.append([Erased(ids, [b"\x81\xa5other\x01"] * len(ids))])

    def marks(self) -> dict[str, int]:
        """Return how many marks there are in each file."""
        found = {each.name: each.read_bytes().count(MARK) for each in self.path.parent.iterdir()}
        return {name: count for name, count in found.items() if count}


@pytest.mark.parametrize("seed", range(3))
def test_what_was_erased_is_nowhere_in_any_file(tmp_path: Path, seed: int) -> None:
    chats = Chats(tmp_path, seed)
    for number in range(60):
        chats.step()
        if number % 3 == 0:
            chats.erase(chats.dice.randint(0, 40))
        if number % 20 == 19:
            wipe(chats.journal)
    for session, first, count in chats.open:
        ids = [f"{session}-{n}" for n in range(first, first + count)]
        results = [told(chats.dice) for _ in ids]
        chats.journal.append([Completed("w", ids, [1] * count, results, 3.0)])
        chats.ended += ids
    assert chats.marks()
    chats.erase(len(chats.ended))
    journal = chats.journal
    assert [journal.needs_wiping, wipe(journal), journal.needs_wiping] == [True, True, False]
    assert chats.marks() == {}
    chats.journal.close()
    assert chats.marks() == {}


def test_what_is_pruned_unasked_for_is_gone_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.restore()
    dice, session = random.Random(1), SESSIONS[0]
    batches = [(session, n, 1) for n in range(200)]
    for _, n, _ in batches:
        asked, answered = told(dice), told(dice)
        journal.append([Submitted(session, n, OF_DOOR, [asked], 1.0)])
        journal.append([Completed("w", [f"{session}-{n}"], [1], [answered], 2.0)])
    journal.append([Closed([(session, n) for _, n, _ in batches]), Pruned(batches, 3.0)])
    wipe(journal)
    assert MARK not in (tmp_path / "journal.db").read_bytes()
    journal.close()


@pytest.mark.parametrize("count", [1, 3, 40, 300, 70_000])
def test_the_right_task_of_a_batch_is_erased(tmp_path: Path, count: int) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.restore()
    dice, session = random.Random(count), SESSIONS[0]
    sizes = (1, 200, 300) if count > 1000 else (1, 200, 300, 70_000)
    payloads = [b"\x80" + dice.randbytes(dice.choice(sizes)) for _ in range(count)]
    ids = [f"{session}-{n}" for n in range(count)]
    journal.append([Submitted(session, 0, OF_DOOR, payloads, 1.0)])
    journal.append([Completed("w", ids, [1] * count, [b"r%d" % n for n in range(count)], 2.0)])
    gone = sorted({0, count // 2, count - 1})
    journal.append([Erased([ids[n] for n in gone], [b""] * len(gone))])
    for n in {*gone, *dice.sample(range(count), min(count, 50))}:
        details, ended = journal.ask(DetailsOf(ids[n])), journal.ask(EndOf(ids[n]))
        assert isinstance(details, TaskDetails)
        assert isinstance(ended, FinishedTask)
        assert details.payload == (b"" if n in gone else payloads[n])
        assert ended.payload == (b"" if n in gone else b"r%d" % n)
    journal.close()


def test_why_a_task_failed_is_told_from_what_is_kept_of_its_result(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.restore()
    ids = [f"{SESSIONS[0]}-{n}" for n in range(2)]
    failed = [msgspec.msgpack.encode({"error": "no machine is there", "output": "x" * 50})] * 2
    journal.append([Submitted(SESSIONS[0], 0, OF_DOOR, [b"\x80"] * 2, 1.0)])
    journal.append([Failed("w", ids, [1] * 2, failed, 2.0, "no machine is there")])
    kept = msgspec.msgpack.encode({"error": "no machine is there", "erased": True})
    journal.append([Erased(ids, [kept, b""])])
    assert wipe(journal)
    whys = []
    for task_id in ids:
        ended = journal.ask(EndOf(task_id))
        assert isinstance(ended, FinishedTask)
        whys.append(ended.why)
    assert whys == ["no machine is there", "erased"]
    journal.close()


def test_what_is_kept_is_never_longer_than_what_was_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.restore()
    task_id = f"{SESSIONS[0]}-0"
    journal.append([Submitted(SESSIONS[0], 0, OF_DOOR, [b"\x80"], 1.0)])
    journal.append([Completed("w", [task_id], [1], [b"\x80"], 2.0)])
    journal.append([Erased([task_id], [b"x" * 1000])])
    (payload,) = journal.ask(OutcomesOf([task_id])).payloads  # type: ignore[union-attr]
    assert payload == b"\x81\xa6erased\xc3"
    journal.close()
