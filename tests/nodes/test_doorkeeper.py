"""The door decides by what the brain last said, tells the brain, and keeps the members."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from msgspec.structs import replace

from d8mesh.config import Config
from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.effects import KeepMembers, Notice, UseView
from d8mesh.core.broker.members_view import KeptMember, Membership, MembersView
from d8mesh.core.broker.state import Policy
from d8mesh.core.broker.store import Restored
from d8mesh.core.protocol.membership import Verdict
from d8mesh.edge.members_file import MEMBERS_NAME
from d8mesh.edge.transport.keys import kept_pair
from d8mesh.errors import ConfigError
from d8mesh.nodes.doorkeeper import Doorkeeper

KEY = b"1" * 32
PENDING = Notice("access.pending", "10.0.0.7", "k3fq-2mzd-7xwa-pq4e", "pi")


class Door:
    """A doorkeeper, and what it did."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.woken = 0
        self.told: list[Notice] = []
        config = Config(data_dir=str(folder), **settings)  # type: ignore[arg-type]
        self.keeper = Doorkeeper(config, folder, self._wake, self.told.append)
        policy, restored = Policy(broker_id="o", mesh="m"), Restored(1, b"s" * 32)
        members = self.keeper.members
        self.dispatcher = Dispatcher(policy, restored, lambda: 0.5, members=members)

    def _wake(self) -> None:
        self.woken += 1

    def counted(self) -> dict[str, int]:
        """Let the brain hear what happened; return what it has refused so far."""
        if self.keeper.has_news:
            self.keeper.tell(self.dispatcher, 1.0)
        return self.dispatcher.state.metrics.rejected


def test_whoever_is_let_in_is_no_news(tmp_path: Path) -> None:
    door = Door(tmp_path)
    assert door.keeper.admits("192.168.1.2", KEY) is Verdict.ADMITTED
    assert (door.woken, door.keeper.has_news, door.counted()) == (0, False, {})


def test_who_is_refused_is_told_to_the_brain_once(tmp_path: Path) -> None:
    door = Door(tmp_path, join="approve")
    assert door.keeper.admits("192.168.1.2", KEY) is Verdict.WAITING
    assert door.keeper.admits("8.8.8.8", KEY) is Verdict.REFUSED
    assert door.woken == 2
    for _ in range(2):
        assert door.counted() == {"access.pending": 1, "access.address": 1}
    assert set(door.keeper.members.waiting) == {KEY}


def test_who_waits_is_called_as_it_is_announced(tmp_path: Path) -> None:
    door = Door(tmp_path, join="approve")
    door.keeper.heard(KEY, "pi")
    door.keeper.admits("192.168.1.2", KEY)
    door.counted()
    assert door.keeper.members.waiting[KEY].name == "pi"


def test_a_public_address_needs_the_mesh_key_and_leave(tmp_path: Path) -> None:
    for settings, verdict in (
        ({"allow_public": True}, Verdict.REFUSED),
        ({"mesh_key": "a long mesh key"}, Verdict.REFUSED),
        ({"mesh_key": "a long mesh key", "allow_public": True}, Verdict.ADMITTED),
    ):
        assert Door(tmp_path, **settings).keeper.admits("8.8.8.8", KEY) is verdict


@pytest.mark.parametrize("join", ["lan", "approve"])
def test_keys_of_the_data_folder_are_let_in_those_made_later_too(tmp_path: Path, join: str) -> None:
    before = kept_pair(tmp_path / "client").public
    door = Door(tmp_path, join=join)
    assert door.keeper.admits("127.0.0.1", before) is Verdict.ADMITTED
    assert not door.keeper.has_news
    later = kept_pair(tmp_path / "workers" / "1").public
    assert door.keeper.admits("127.0.0.1", later) is Verdict.ADMITTED
    assert door.counted() == {}
    assert later in door.keeper.members.own


def test_another_view_is_decided_by_at_once(tmp_path: Path) -> None:
    door = Door(tmp_path)
    door.keeper.use(UseView(MembersView(revoked=frozenset({KEY}))))
    assert door.keeper.admits("192.168.1.2", KEY) is Verdict.REFUSED


def test_members_are_known_to_the_next_start(tmp_path: Path) -> None:
    row = KeptMember(key=KEY.hex(), standing=Membership.REVOKED, worker_ids=("w",))
    assert Door(tmp_path).keeper.keep(KeepMembers([row])) == ""
    again = Door(tmp_path).keeper
    assert again.members.owner_of("w") == KEY
    assert again.admits("192.168.1.2", KEY) is Verdict.REFUSED


def test_a_file_that_cannot_be_written_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(tmp_path)
    (tmp_path / f"{MEMBERS_NAME}.new").mkdir()
    with caplog.at_level(logging.ERROR):
        assert MEMBERS_NAME in door.keeper.keep(KeepMembers([]))
    assert "members.unkept" in caplog.text


def test_a_damaged_file_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / MEMBERS_NAME).write_text("nonsense")
    with pytest.raises(ConfigError, match=MEMBERS_NAME):
        Door(tmp_path)


@pytest.mark.parametrize(
    ("action", "event"),
    [("approve", "approved"), ("revoke", "revoked"), ("forget", "forgotten")],
)
def test_what_was_changed_is_logged_with_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, action: str, event: str
) -> None:
    with caplog.at_level(logging.INFO):
        Door(tmp_path).keeper.notify(replace(PENDING, code=f"member.{action}"))
    assert f"member.{event}" in caplog.text
    assert PENDING.fingerprint in caplog.text


def test_who_waits_is_logged_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    door = Door(tmp_path)
    with caplog.at_level(logging.INFO):
        door.keeper.notify(PENDING)
        door.keeper.notify(replace(PENDING, code="worker.id_taken", is_quiet=True))
    assert door.told == [PENDING]
    assert "peer.waits" in caplog.text
    assert "worker.id_taken" in caplog.text
    assert PENDING.fingerprint in caplog.text
