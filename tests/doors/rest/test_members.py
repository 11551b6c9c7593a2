"""Who may join, asked and changed over HTTP by a program of the orchestrator's machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from d8mesh.core.protocol.membership import fingerprint
from d8mesh.nodes.worker import Worker
from tests.doors.rest_calls import BOSS, Rest, rest_in
from tests.nodes.mesh import until


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    with rest_in(tmp_path_factory.mktemp("rest")) as rest:
        yield rest


def test_who_is_known_is_listed_and_can_be_shown_out_and_in_again(rest: Rest) -> None:
    config = rest.mesh.config(interface="no-mdns", data="guest")
    worker = Worker(rest.mesh.endpoint(rest.port), config=config, slots=1, name="guest")
    rest.mesh.run(worker)
    (guest,) = [
        each
        for each in rest.get("/api/join", headers=BOSS).json["members"]
        if each["name"] == "guest"
    ]
    assert guest["fingerprint"] == fingerprint(bytes.fromhex(guest["key"]))
    assert (guest["standing"], guest["is_connected"]) == ("admitted", True)
    out = rest.post("/api/join/revoke", {"who": "guest"}, headers=BOSS)
    assert (out.status_code, out.json["standing"], out.json["action"]) == (200, "revoked", "revoke")
    until(lambda: rest.get("/health").json["workers_online"] == 0)
    back = rest.post("/api/join/approve", {"who": guest["fingerprint"]}, headers=BOSS)
    assert (back.status_code, back.json["standing"]) == (200, "admitted")


@pytest.mark.parametrize(
    ("action", "body", "status", "code"),
    [
        ("approve", {"who": "nobody"}, 404, "member.unknown"),
        ("approve", {"who": ""}, 400, "task.invalid"),
        ("approve", {"who": "x" * 129}, 400, "task.invalid"),
        ("revoke", {"who": 7}, 400, "task.invalid"),
        ("forget", {}, 400, "task.invalid"),
        ("forget", [], 400, "task.invalid"),
    ],
)
def test_a_wrong_body_or_name_is_told(
    rest: Rest, action: str, body: object, status: int, code: str
) -> None:
    answer = rest.post(f"/api/join/{action}", body, headers=BOSS)
    assert (answer.status_code, answer.json["code"]) == (status, code), answer.text


def test_a_key_of_the_orchestrators_folder_cannot_be_shown_out(rest: Rest) -> None:
    own = [each for each in rest.get("/api/join", headers=BOSS).json["members"] if each["is_own"]]
    answer = rest.post("/api/join/revoke", {"who": own[0]["fingerprint"]}, headers=BOSS)
    assert (answer.status_code, answer.json["code"]) == (403, "access.forbidden")


@pytest.mark.parametrize("peer", ["127.0.0.1", "10.0.0.9"])
@pytest.mark.parametrize("path", ["/api/join", "/api/join/approve"])
def test_who_shows_nothing_is_refused_on_this_machine_too(rest: Rest, path: str, peer: str) -> None:
    method = "GET" if path == "/api/join" else "POST"
    answer = rest.call(method, path, {"who": "pi"} if method == "POST" else b"", peer=peer)
    assert (answer.status_code, answer.json["code"]) == (401, "access.token"), answer.text


def test_an_action_that_is_none_is_no_path(rest: Rest) -> None:
    assert rest.post("/api/join/adopt", {"who": "pi"}).status_code == 404
    assert rest.get("/api/join/approve").status_code == 405
