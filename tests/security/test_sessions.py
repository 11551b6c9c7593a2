"""Frames that a session does not allow, said to a broker at work, each by a key of its own.

The numbers are those of the list of bad inputs that the broker has an answer to.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgpack
import pytest

from d8mesh.apps.orchestrators import ask
from d8mesh.core.broker.strikes import BURST_STRIKES
from d8mesh.core.protocol import messages as m
from d8mesh.edge.transport.keys import new_pair
from tests.nodes.running import until
from tests.security.abuse import Abused, abused_mesh
from tests.security.raw_sessions import ABUSE, FROM_CLIENTS, FROM_WORKERS, PATIENCE_S, Raw, raw


@pytest.fixture(scope="module")
def abused() -> Iterator[Abused]:
    with abused_mesh() as made:
        yield made


@contextlib.contextmanager
def holding(abused: Abused, name: str, **options: Any) -> Iterator[tuple[Raw, str, bytes]]:
    """Yield a worker that holds one attempt, its task, and its token; the task ends with it."""
    with raw(abused) as peer, raw(abused) as asker:
        peer.join(peer.worker(name, types=[name]))  # a type that no other worker of the tests has
        hello = asker.client()
        asker.join(hello)
        group = m.Group(name, 5, [b"\x80"], **options)
        asker.say(m.Submit(1, hello.session, 0, [group]))
        until(asker.link, m.Accepted)
        (work,) = until(peer.link, m.Work).groups
        yield peer, work.ids[0], work.tokens[0]
        asker.say(m.Query(9, "cancel", {"id": work.ids[0]}))
        until(asker.link, m.Answer)


def state_of(abused: Abused, task_id: str) -> dict[str, Any]:
    told: dict[str, Any] = ask(abused.mesh.url, f"/api/tasks/status/{task_id}")
    return told


BEFORE_HELLO: Final = (
    m.Heartbeat(1, 1, 0, 0, [ABUSE], [], []),
    m.Results(1, 1, ["0123456789abcdef-0"], [b"t" * 16], bytes([m.SUCCEEDED]), [b"\x80"]),
    m.Submit(1, "0123456789abcdef", 0, [m.Group("echo", 5, [b"\x80"])]),
    m.Watch(["0123456789abcdef-0"]),
    m.Query(1, "tasks", {}),
    m.Query(1, "members", {}),
    m.ChangeMembers(1, "approve", "anybody"),
    m.Delivered(1, ["0123456789abcdef-0"], [b""]),
)


@pytest.mark.parametrize("said", BEFORE_HELLO, ids=lambda said: type(said).__name__)
def test_26_anything_before_hello_is_dropped_and_asked_for_one(
    abused: Abused, said: m.Message
) -> None:
    with abused.refused("broker", "session.unknown"), raw(abused) as peer:
        peer.say(said)
        assert "HELLO" in until(peer.link, m.Rehello).reason


def test_26_a_second_hello_with_another_id_is_refused_and_the_first_session_stands(
    abused: Abused,
) -> None:
    with raw(abused) as peer:
        peer.join(peer.worker("first"))
        with abused.refused("broker", "access.forbidden", times=2):
            peer.say(peer.worker("second"), peer.client())
            for _ in range(2):
                peer.refused("access.forbidden")
        peer.say(m.Heartbeat(1, 1, 0, 0, [ABUSE], [], []))
        until(peer.link, m.Beat)
        names = [each["worker_id"] for each in ask(abused.mesh.url, "/api/workers/list")["workers"]]
        assert "first" in names
        assert "second" not in names


def test_27_somebody_elses_worker_id_is_taken_and_the_real_one_works_on(abused: Abused) -> None:
    workers = ask(abused.mesh.url, "/api/workers/list")["workers"]
    (name,) = [w["worker_id"] for w in workers if "echo" in w["capabilities"]["task_types"]]
    with raw(abused) as peer, abused.refused("broker", "worker.id_taken"):
        peer.say(peer.worker(name, types=["echo"]))
        assert "another key" in peer.refused("worker.id_taken").message
    with abused.refused_once():
        body = {"worker_id": name, "worker_type": "x", "capabilities": {}}
        assert abused.http.post("/api/workers/register", body).status == 409
    with raw(abused) as late, abused.refused("broker", "worker.id_taken"):
        with raw(abused) as owner:
            owner.join(owner.worker("owned"))
            owner.say(m.Goodbye("bye"))
        late.say(late.worker("owned"))  # its owner is away
        late.refused("worker.id_taken")


def test_28_a_result_with_a_guessed_id_or_token_is_without_effect(abused: Abused) -> None:
    with holding(abused, "w28") as (peer, task_id, token):
        guessed = token[:-1] + bytes([token[-1] ^ 1])
        with abused.refused("broker", "token.invalid", times=2):
            for seq, (name, shown) in enumerate(((task_id, guessed), ("f" * 16 + "-0", token)), 1):
                peer.say(m.Results(seq, 1, [name], [shown], bytes([m.SUCCEEDED]), [b"\x80"]))
                until(peer.link, m.Received)
        assert state_of(abused, task_id)["state"] == "running"


def test_29_a_result_said_again_changes_nothing_and_another_one_neither(abused: Abused) -> None:
    with holding(abused, "w29") as (peer, task_id, token):
        first, other = (msgpack.packb({"success": True, "output": n}) for n in (1, 2))
        peer.say(m.Results(1, 1, [task_id], [token], bytes([m.SUCCEEDED]), [first]))
        until(peer.link, m.Received)
        before = ask(abused.mesh.url, "/health")["duplicates"]
        with abused.refused_as({}):
            for seq, payload in ((1, first), (2, first), (3, other)):
                peer.say(m.Results(seq, 1, [task_id], [token], bytes([m.SUCCEEDED]), [payload]))
                until(peer.link, m.Received)
        assert ask(abused.mesh.url, "/health")["duplicates"] == before + 3
        told = state_of(abused, task_id)
        assert (told["state"], told["result"]["output"]) == ("completed", 1)


def test_30_a_failure_or_a_return_of_an_earlier_attempt_is_refused(abused: Abused) -> None:
    with holding(abused, "w30", max_attempts=5) as (peer, task_id, token):
        failed = msgpack.packb({"success": False, "error": "once"})
        peer.say(m.Results(1, 1, [task_id], [token], bytes([m.FAILED]), [failed]))
        (again,) = until(peer.link, m.Work).groups
        assert (again.ids, again.tokens) != ([task_id], [token])
        with abused.refused_as({("broker", "result.stale"): 1, ("broker", "release.stale"): 1}):
            peer.say(m.Results(2, 1, [task_id], [token], bytes([m.FAILED]), [failed]))
            peer.say(m.Release(1, [task_id], [token], "not mine any more"))
            until(peer.link, m.Received)
        told = state_of(abused, task_id)
        assert (told["state"], told["attempts"]) == ("running", 2)


def test_30_the_heartbeat_of_a_rest_worker_extends_nobody_elses_attempt(abused: Abused) -> None:
    with holding(abused, "w30b") as (_, task_id, _):
        body = {"worker_id": "rest30", "worker_type": "x", "capabilities": {}}
        assert abused.http.post("/api/workers/register", body).status == 200
        with abused.refused_as({}):
            said = abused.http.post("/api/workers/rest30/heartbeat", {"task_ids": [task_id]})
            assert said.status == 200
        with abused.refused_once():
            report = {"task_id": task_id, "worker_id": "rest30", "result": {"success": True}}
            assert abused.http.post("/api/workers/results", report).status == 403
        assert state_of(abused, task_id)["assigned_to"] == "w30b"


def odd_hellos(mesh: str) -> dict[str, list[Any]]:
    """Return HELLOs of workers as arrays, each wrong in one field."""
    good = [10, 1, mesh, "odd", "b", "t", "x", "h", 0, ["echo"], [], 1, 1, [], []]

    def with_field(at: int, value: Any) -> list[Any]:
        return [*good[:at], value, *good[at + 1 :]]

    return {
        "a million models": with_field(10, ["m"] * 1_000_000),
        "negative slots": with_field(11, -1),
        "slots that are no number": with_field(11, math.nan),
        "infinite window": with_field(12, math.inf),
        "a port beyond ports": with_field(8, 70_000),
        "escapes in the id": with_field(3, "\x1b[2Jodd"),
        "escapes in a type": with_field(9, ["echo\x1b]0;x\x07"]),
        "a line break in the host": with_field(7, "h\nbroker.up port=1"),
        "an empty id": with_field(3, ""),
        "a long id": with_field(3, "x" * 10_000),
        "an id that is bytes": with_field(3, b"odd"),
        "ids without their tokens": with_field(13, ["0123456789abcdef-0"]),
        "no list": with_field(9, "echo"),
    }


@pytest.mark.parametrize("wrong", odd_hellos("m"))
def test_31_a_hello_with_odd_fields_is_invalid(abused: Abused, wrong: str) -> None:
    with raw(abused) as peer, abused.refused("broker", "protocol.invalid"):
        peer.say(msgpack.packb(odd_hellos(peer.mesh)[wrong]))
        peer.refused("protocol.invalid")
    names = [each["worker_id"] for each in ask(abused.mesh.url, "/api/workers/list")["workers"]]
    assert not any("odd" in name for name in names)


def test_32_verbs_of_the_other_kind_are_forbidden(abused: Abused) -> None:
    with raw(abused) as worker, raw(abused) as client:
        worker.join(worker.worker("w32"))
        client.join(client.client())
        count = len(FROM_CLIENTS) + len(FROM_WORKERS)
        with abused.refused("broker", "access.forbidden", times=count):
            worker.say(*FROM_CLIENTS)
            client.say(*FROM_WORKERS)
            for peer, said in ((worker, FROM_CLIENTS), (client, FROM_WORKERS)):
                for _ in said:
                    peer.refused("access.forbidden")


def test_32_a_member_may_neither_erase_nor_replace_what_another_was_answered(
    abused: Abused,
) -> None:
    submitted = abused.http.post("/api/tasks/submit", {"type": "echo", "data": {"text": "mine"}})
    task_id = submitted.json["task_id"]
    abused.http.ask("GET", f"/api/tasks/{task_id}/wait?timeout_s=60")
    before = state_of(abused, task_id)
    with raw(abused) as client:
        client.join(client.client())
        with abused.refused("broker", "access.forbidden"):
            client.say(m.Delivered(1, [task_id], [msgpack.packb({"output": "forged"})]))
            until(client.link, m.Received)
    assert state_of(abused, task_id) == before


def test_32_a_member_may_not_change_who_is_one(abused: Abused) -> None:
    with raw(abused) as client:
        client.join(client.client())
        with abused.refused("broker", "access.forbidden", times=2):
            client.say(m.ChangeMembers(1, "revoke", "anybody"), m.Query(2, "members", {}))
            assert {until(client.link, m.Answer).code for _ in range(2)} == {"access.forbidden"}


def test_33_a_flood_from_one_key_has_that_key_banned_and_nobody_else(abused: Abused) -> None:
    flood = int(BURST_STRIKES) + 1
    keys = new_pair()
    with raw(abused, keys) as peer, raw(abused) as other:
        other.join(other.worker("w33-other"))
        peer.join(peer.worker("w33"))
        before = abused.rejected()
        peer.say(*[b"\xc1"] * flood)
        abused.goes_on()
        with raw(abused, keys) as again:
            again.say(again.worker("w33"))
            wait_until(lambda: (abused.rejected() - before)["broker", "access.banned"] > 0)
            assert not again.link.receive(10)
        counted = abused.rejected() - before
        assert counted["broker", "protocol.invalid"] == flood
        assert set(counted) == {("broker", "protocol.invalid"), ("broker", "access.banned")}
        workers = ask(abused.mesh.url, "/api/workers/list")["workers"]
        standing = {each["worker_id"]: each["status"] for each in workers}
        assert (standing["w33"], standing["w33-other"]) == ("offline", "online")
        other.say(m.Heartbeat(1, 1, 0, 0, [ABUSE], [], []))
        until(other.link, m.Beat)
    abused.goes_on()


def wait_until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
