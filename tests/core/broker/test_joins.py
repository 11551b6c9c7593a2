"""Members are let in, shown out and forgotten while the mesh is at work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.joins import (
    KEEP_AGAIN_S,
    KEEP_S,
    MAX_LEFT_BEHIND,
    MAX_NOTED,
    NOTICES_PER_MINUTE,
)
from d8mesh.core.broker.members_view import Knock, Membership
from d8mesh.core.broker.strikes import BAN_S, BURST_STRIKES
from d8mesh.core.broker.unwelcome import MAX_UNWELCOME_PER_ADDRESS, UNWELCOME_S
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.membership import Verdict, fingerprint
from d8mesh.core.protocol.task import Requeued, TaskState
from tests.core.wired_broker import S, WiredBroker, beat, hello

KEY, OTHER, OWN = b"1" * 32, b"2" * 32, b"o" * 32
OURS = "f" * 16


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[WiredBroker]:
    wired = WiredBroker(tmp_path, joining={"own": {OWN}})
    yield wired
    wired.close()


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[WiredBroker]:
    wired = WiredBroker(tmp_path, joining={"own": {OWN}, "needs_approval": True})
    yield wired
    wired.close()


def change(broker: WiredBroker, action: Any, who: str, *, by: bytes | None = OWN) -> m.Answer:
    """Let whoever runs the orchestrator change a member; return the answer."""
    peer = broker.client(OURS, key=by)
    broker.seq += 1
    broker.say(peer, m.ChangeMembers(broker.seq, action, who))
    (answer,) = broker.got(peer, m.Answer)
    broker.say(peer, m.Goodbye("done"))
    return answer


def knock(broker: WiredBroker, key: bytes, address: str = "10.0.0.7") -> Verdict:
    """Let the gate decide, and tell the brain, as the loop does."""
    code = broker.view.refusal(address, key)
    if code:
        effects = broker.dispatcher.knocked(Knock(key, address, code), broker.now)
        broker.perform([*effects, *broker.dispatcher.tick(broker.now, broker.at)])
    return broker.view.verdict(address, key)


def test_a_revoked_worker_is_out_at_once_and_its_tasks_go_on_elsewhere(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", key=KEY)
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    answer = change(broker, "revoke", "w")
    assert (answer.code, answer.body["standing"]) == ("", "revoked")
    assert answer.body["is_connected"] is False, "it was shown out by this very answer"
    assert broker.got(worker, m.Refused)[0].code == "access.revoked"
    assert broker.dropped == [worker]
    assert broker.view.verdict("10.0.0.1", KEY) is Verdict.REFUSED
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    assert not any(isinstance(fact, Requeued) and fact.is_counted for fact in broker.facts)
    other = broker.worker("v", key=OTHER)
    again = broker.work(other)
    broker.finish(other, again)
    assert broker.got(client, m.Outcomes)[0].ids == [task_id]
    assert list(held) == list(again)


def test_results_of_a_revoked_key_are_refused_whoever_hands_them_in(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", key=KEY)
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    change(broker, "revoke", "w")
    friend = broker.worker("v", types=["other"], key=OTHER, held=held)
    assert broker.got(friend, m.Welcome)[0].dropped_ids == [task_id]
    broker.state.metrics.rejected.clear()
    broker.finish(friend, held)
    assert broker.state.metrics.rejected == {"access.revoked": 1}
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    broker.say(worker, hello("w", held=held))
    assert broker.got(worker, m.Refused)[-1].code == "access.revoked"
    assert change(broker, "approve", "w").body["standing"] == "admitted"
    back = broker.worker("w", key=KEY, held=held)
    broker.finish(back, held)
    assert broker.got(client, m.Outcomes)[0].ids == [task_id]


def test_a_revoked_client_hears_nothing_more_and_its_tasks_are_still_there(
    broker: WiredBroker,
) -> None:
    client = broker.client(key=KEY)
    (task_id,) = broker.submit(client)
    assert change(broker, "revoke", fingerprint(KEY)).code == ""
    assert S not in broker.state.clients
    assert broker.dropped == [client]
    broker.say(client, m.Watch([task_id]))
    assert broker.got(client, m.Rehello)
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED


@pytest.mark.parametrize("by", [KEY, None])
def test_only_a_key_of_the_orchestrators_folder_sees_and_changes_members(
    broker: WiredBroker, by: bytes | None
) -> None:
    broker.worker("w", key=OTHER)
    answer = change(broker, "revoke", "w", by=by)
    assert answer.code == "access.forbidden"
    assert "D8_DATA_DIR" in str(answer.body["error"])
    assert broker.ask(broker.client("e" * 16, key=by), "members").code == "access.forbidden"
    assert broker.state.members.by_key[OTHER].standing is Membership.ADMITTED
    assert broker.state.metrics.rejected == {"access.forbidden": 2}
    assert broker.ask(broker.client("d" * 16, key=OWN), "members").body["members"]


def test_a_wrong_name_is_answered_and_changes_nothing(broker: WiredBroker) -> None:
    assert change(broker, "revoke", "nobody").code == "member.unknown"
    unseen = b"u" * 32
    broker.state.members.own.add(unseen)
    for own in (OWN, unseen):
        answer = change(broker, "revoke", fingerprint(own))
        assert answer.code == "access.forbidden"
        assert "always let in" in str(answer.body["error"])
    for n in (3, 4):
        broker.client(str(n) * 16, key=bytes([n]) * 32)
    assert change(broker, "revoke", "pc").code == "member.ambiguous"
    assert not broker.view.revoked


def test_who_waits_is_told_of_once_and_comes_in_when_approved(strict: WiredBroker) -> None:
    strict.dispatcher.announced(KEY, "pi")
    for _ in range(3):
        assert knock(strict, KEY) is Verdict.WAITING
    assert strict.state.metrics.rejected == {"access.pending": 3}
    (notice,) = strict.notices
    assert (notice.code, notice.address, notice.name) == ("access.pending", "10.0.0.7", "pi")
    assert notice.fingerprint == fingerprint(KEY)
    assert change(strict, "approve", notice.fingerprint).body["standing"] == "admitted"
    assert knock(strict, KEY) is Verdict.ADMITTED
    assert strict.got(strict.worker("pi", key=KEY), m.Welcome)
    strict.restart()
    assert strict.got(strict.worker("pi", key=KEY), m.Welcome)


def test_what_join_does_is_told_and_so_is_what_comes_of_it(broker: WiredBroker) -> None:
    broker.worker("w", key=KEY)
    for action in ("revoke", "approve", "revoke"):
        change(broker, action, fingerprint(KEY))
        if action == "revoke":
            knock(broker, KEY)
            knock(broker, KEY)
    codes = [each.code for each in broker.notices]
    out = ["member.revoke", "access.revoked"]
    assert codes == [*out, "member.approve", *out]
    assert {each.fingerprint for each in broker.notices} == {fingerprint(KEY)}
    assert broker.notices[0].name == "w"


def test_a_key_made_in_our_folder_after_the_start_is_let_in(strict: WiredBroker) -> None:
    strict.perform(strict.dispatcher.knocked(Knock(KEY, "127.0.0.1", "", is_own=True), strict.now))
    assert strict.got(strict.worker("w", key=KEY), m.Welcome)
    assert strict.state.metrics.rejected == {}


def test_a_live_worker_that_is_forgotten_says_hello_again(broker: WiredBroker) -> None:
    worker = broker.worker("w", key=KEY)
    assert change(broker, "forget", "w").body["standing"] == "unknown"
    assert broker.got(worker, m.Rehello)
    assert broker.state.members.owner_of("w") is None
    assert broker.got(broker.worker("w", key=OTHER), m.Welcome)


def test_a_flood_bans_its_key_for_minutes_and_nobody_else(broker: WiredBroker) -> None:
    client = broker.client()
    flood, other = broker.worker("w", key=KEY), broker.worker("v", key=OTHER)
    broker.submit(client, 2)
    count = int(BURST_STRIKES) + 1
    for _ in range(count):
        broker.perform(broker.dispatcher.malformed(flood, "protocol.invalid", broker.now))
    broker.pass_time(0.5)
    assert broker.state.metrics.rejected == {"protocol.invalid": count}
    assert broker.dropped == [flood]
    assert broker.view.verdict("10.0.0.1", KEY) is Verdict.WAITING
    assert broker.view.verdict("10.0.0.1", OTHER) is Verdict.ADMITTED
    assert not broker.state.registry.workers["w"].is_live
    assert broker.got(broker.worker("w", key=KEY), m.Refused)[0].code == "access.banned"
    assert len(broker.work(other)) == 1
    assert [notice.code for notice in broker.notices] == ["access.banned"]
    broker.pass_time(BAN_S + 1.0, step=10.0)
    assert broker.got(broker.worker("w", key=KEY), m.Welcome)


def test_an_approval_ends_a_ban(broker: WiredBroker) -> None:
    flood = broker.worker("w", key=KEY)
    for _ in range(int(BURST_STRIKES) + 1):
        broker.perform(broker.dispatcher.malformed(flood, "protocol.invalid", broker.now))
    assert change(broker, "approve", "w").code == ""
    assert broker.got(broker.worker("w", key=KEY), m.Welcome)


def test_our_own_keys_and_those_without_one_are_never_banned(broker: WiredBroker) -> None:
    for peer in (broker.worker("w", key=OWN), broker.worker("v")):
        for _ in range(100):
            broker.perform(broker.dispatcher.malformed(peer, "protocol.invalid", broker.now))
    assert not broker.state.members.strikes.banned
    assert broker.state.metrics.rejected == {"protocol.invalid": 200}


def test_what_was_in_a_queue_at_a_restart_bans_nobody(broker: WiredBroker) -> None:
    worker = broker.peer("w", key=KEY)
    for _ in range(1000):
        broker.say(worker, beat([], 0))
    assert broker.state.metrics.rejected == {"session.unknown": 1000}
    broker.say(worker, hello("w"))
    assert broker.got(worker, m.Welcome)


def test_what_was_under_way_when_a_session_went_on_elsewhere_is_not_refused(
    broker: WiredBroker,
) -> None:
    worker, client = broker.worker("w", key=KEY), broker.client()
    again, asker = broker.worker("w", key=KEY), broker.client()
    broker.say(worker, beat([], 0))
    broker.say(client, m.Watch([]))
    assert broker.got(worker, m.Rehello)
    assert broker.got(client, m.Rehello)
    assert not broker.state.metrics.rejected
    for peer in (again, asker):
        broker.say(peer, m.Goodbye("bye"))
    broker.say(again, beat([], 0))  # it has left: nobody says that again
    assert broker.state.metrics.rejected == {"session.unknown": 1}


def test_of_connections_that_were_left_behind_the_newest_are_known(broker: WiredBroker) -> None:
    peers = [broker.client() for _ in range(MAX_LEFT_BEHIND + 2)]
    broker.say(peers[-2], m.Watch([]))
    assert not broker.state.metrics.rejected
    broker.say(peers[0], m.Watch([]))
    assert broker.state.metrics.rejected == {"session.unknown": 1}


def test_refusals_are_told_of_once_each_and_not_too_many(broker: WiredBroker) -> None:
    for n in range(MAX_NOTED + 5):
        for _ in range(2):
            knock = Knock(None, f"8.8.{n // 250}.{n % 250}", "access.address")
            broker.perform(broker.dispatcher.knocked(knock, broker.now))
    assert broker.state.metrics.rejected == {"access.address": 2 * (MAX_NOTED + 5)}
    assert len(broker.notices) == MAX_NOTED + 5, "each has its line in the log"
    assert [each.is_quiet for each in broker.notices].count(False) == NOTICES_PER_MINUTE
    assert broker.notices[0].fingerprint == ""
    broker.pass_time(61.0, step=10.0)
    broker.perform(broker.dispatcher.knocked(Knock(None, "9.9.9.9", "access.address"), broker.now))
    assert not broker.notices[-1].is_quiet


def test_an_id_that_is_taken_is_of_interest_to_the_log_only(broker: WiredBroker) -> None:
    broker.worker("w", key=KEY)
    assert broker.got(broker.worker("w", key=OTHER), m.Refused)[0].code == "worker.id_taken"
    (notice,) = broker.notices
    assert (notice.code, notice.is_quiet) == ("worker.id_taken", True)


def test_who_comes_is_written_once_for_all_of_some_seconds(broker: WiredBroker) -> None:
    broker.worker("w", key=KEY)
    broker.worker("v", key=OTHER)
    broker.pass_time(1.0)
    first = {row.name for row in broker.kept}
    broker.pass_time(KEEP_S)
    assert first <= {row.name for row in broker.kept} == {"w", "v"}


def test_a_change_that_cannot_be_written_is_done_told_and_tried_again(broker: WiredBroker) -> None:
    broker.worker("w", key=KEY)
    broker.disk_trouble = "members.json: No space left on device"
    answer = change(broker, "revoke", "w")
    assert answer.code == "d8.error"
    assert "until the next start only" in str(answer.body["error"])
    assert broker.view.verdict("10.0.0.1", KEY) is Verdict.REFUSED
    broker.disk_trouble = ""
    broker.pass_time(KEEP_AGAIN_S + 1.0)
    assert {row.standing for row in broker.kept if row.name == "w"} == {Membership.REVOKED}


def test_a_rest_worker_cannot_have_the_id_of_a_key(broker: WiredBroker) -> None:
    broker.say(broker.worker("w", key=KEY), m.Goodbye("bye"))
    web = broker.client(OURS, key=OWN)
    asked: dict[str, Any] = {"worker_id": "w", "worker_type": "x", "capabilities": {}}
    answer = broker.ask(web, "poll.register", **asked)
    assert answer.code == "worker.id_taken"
    assert change(broker, "forget", "w").code == ""
    assert broker.ask(broker.client(OURS, key=OWN), "poll.register", **asked).code == ""


@pytest.mark.parametrize("said", [hello("w", mesh="another"), m.Watch([])])
def test_who_opens_no_session_is_closed_after_a_while(broker: WiredBroker, said: m.Message) -> None:
    peer = broker.peer("r-odd", "10.0.0.5", OTHER)
    broker.say(peer, said)
    broker.pass_time(UNWELCOME_S - 1)
    broker.say(peer, said)
    assert broker.dropped == []
    broker.pass_time(2)
    assert broker.dropped == [peer]


def test_who_opens_one_in_time_stays(broker: WiredBroker) -> None:
    peer = broker.peer("c-late", "10.0.0.5", OTHER)
    broker.say(peer, m.Watch([]))
    broker.say(peer, hello("late"))
    assert broker.got(peer, m.Welcome)
    broker.pass_time(UNWELCOME_S + 1)
    assert broker.dropped == []


def test_of_those_who_open_none_an_address_has_a_few(broker: WiredBroker) -> None:
    for n in range(MAX_UNWELCOME_PER_ADDRESS + 3):
        key = n.to_bytes(32, "big")
        broker.say(broker.peer(f"r-{n}", "10.0.0.5", key), hello("w", mesh="another"))
    assert len(broker.dropped) == 3
    assert broker.got(broker.worker("w", key=KEY), m.Welcome)


def test_a_peer_of_no_session_is_not_led_on_by_the_verbs_of_others(broker: WiredBroker) -> None:
    worker, client = broker.worker("w", key=KEY), broker.client(key=OTHER)
    for peer, said in ((worker, m.Query(1, "health", {})), (client, beat([], 0))):
        broker.say(peer, said)
        assert broker.got(peer, m.Refused)[0].code == "access.forbidden"
    stranger = Peer(b"stranger", "10.0.0.3", b"3" * 32)
    broker.say(stranger, m.ChangeMembers(1, "approve", "w"))
    assert broker.got(stranger, m.Rehello)
    assert not broker.got(stranger, m.Answer)
