"""A mesh with a key, asked from another machine: every route, every method, every kind of key.

The orchestrator, a worker and a healthy client are on one host, the stranger is on another.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from d8mesh.core.protocol.access_tokens import TokenScope
from tests.end_to_end.hosts import Host, Lan, available
from tests.end_to_end.processes import until
from tests.security.raw_http import Told, head
from tests.security.stranger import ROOT, Stranger, StrangersAsk

if reason := available():
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.namespace

KEY: Final = "the-key-of-this-mesh-4711"
MESH: Final = "closed"
WORKER: Final = "the-worker-that-nobody-sees"
SECRET: Final = "what-nobody-may-read"
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
#: Those that the parser knows no method of, and one that asks for another connection.
NO_METHODS: Final = ("FETCH", "get", "GÉT", "BREW", "CONNECT")
UNKNOWN: Final = (
    "/nothing", "/api", "/api/", "/api/nothing", "/v1", "/v1/", "/v1/nothing", "/v1/messages/x",
    "/api/tasks/../join", "//api/tasks", "/%61pi/tasks", "/health/", "/Health", "/favicon.ico",
)  # fmt: skip
#: A path of each door.
OF_EACH_DOOR: Final = (
    "/api/tasks", "/api/workers/list", "/api/join", "/api/mesh/exchange", "/api/tags", "/",
    "/v1/models", "/v1/messages", "/v1/files", "/openapi.json", "/health",
)  # fmt: skip
LARGE_BYTES: Final = 10_000_000

CLIENT: Final = """
import sys
from d8mesh import Client
from d8mesh.config import Config
with Client(config=Config(mesh=sys.argv[1], mesh_key=sys.argv[2], data_dir=sys.argv[3])) as client:
    assert client.wait_connected(60), client.trouble
    for line in sys.stdin:
        print(client.submit("echo", {"text": line.strip()}).result(60)["output"], flush=True)
"""


class ClosedMesh:
    """The hosts, and what runs there."""

    def __init__(self, lan: Lan, folder: Path) -> None:
        self.inside, self.outside = lan.hosts
        self.folder = folder
        self.start(self.inside, "orchestrator", D8_DATA_DIR=str(folder / "o"))
        self.start(self.inside, "worker", D8_DATA_DIR=str(folder / "w"), WORKER_ID=WORKER)
        until(lambda: self.health().get("workers_online") == 1, "a worker is there")
        self.client = self.inside.popen(
            [sys.executable, "-c", CLIENT, MESH, KEY, str(folder / "c")],
            env={"PYTHONPATH": str(ROOT)},
            stdin=-1,
        )
        self.goes_on()
        self.stranger = Stranger(self.outside, self.inside.address)

    def start(self, host: Host, command: str, **settings: str) -> Path:
        """Start a d8mesh command there; return the file it writes to."""
        log = self.folder / f"{command}-{time.monotonic_ns()}"
        env = {
            "PYTHONPATH": str(ROOT),
            "D8_NO_ENV_FILE": "1",
            "D8_MESH": MESH,
            "D8_MESH_KEY": KEY,
            "D8_INTERFACES": "",
            "FLASK_HOST": "0.0.0.0",
            **settings,
        }
        with log.open("w", encoding="utf-8") as out:
            host.popen([sys.executable, "-m", "d8mesh", command], env=env, stdout=out, stderr=out)
        return log

    def goes_on(self) -> None:
        """See that a task of the healthy client is run."""
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        self.client.stdin.write(f"{SECRET}\n")
        self.client.stdin.flush()
        assert SECRET in self.client.stdout.readline()

    def near(self, path: str) -> Any:
        """Return what the orchestrator's own machine is told."""
        code = (
            "import sys, urllib.request as u\n"
            f"print(u.urlopen('http://127.0.0.1:7001{path}', timeout=30).read().decode())"
        )
        done = self.inside.run([sys.executable, "-c", code])
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = self.near("/health")
        return found

    def rejected(self) -> Counter[str]:
        """Return what REST has refused, by code."""
        return Counter(self.health()["rejected"]["rest"])

    def token(self, *arguments: str) -> str:
        """Run the command `token`, and return what it prints."""
        command = [sys.executable, "-m", "d8mesh", "token", *arguments]
        data = ["--data", str(self.folder / "o")]
        done = self.inside.run([*command, *data], env={"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClosedMesh]:
    with Lan(hosts=2) as lan:
        yield ClosedMesh(lan, tmp_path_factory.mktemp("closed"))


@pytest.fixture(scope="module")
def paths(closed: ClosedMesh) -> list[str]:
    """Every path of every door of the running process, filled in with what there is."""
    document = closed.near("/openapi.json")
    task_id = closed.near("/api/tasks?limit=1")["tasks"][0]["task_id"]
    values = {"task_id": task_id, "worker_id": WORKER}
    filled = [
        re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], "x"), path)
        for path in document["paths"]
    ]
    assert len(filled) > 50
    assert set(OF_EACH_DOOR) <= set(filled)
    return filled


def test_01_without_the_key_every_route_and_method_is_refused_and_tells_nothing(
    closed: ClosedMesh, paths: list[str]
) -> None:
    before = closed.rejected()
    asked = [(method, path) for path in (*paths, *UNKNOWN) for method in METHODS]
    address = closed.inside.address
    told = closed.stranger.all_of(
        [StrangersAsk(head(method, path, host=address)) for method, path in asked]
    )
    for (method, path), answer in zip(asked, told, strict=True):
        check_refused(answer, method, path)
    assert closed.rejected() - before == Counter({"access.token": len(asked)})
    closed.goes_on()


def check_refused(answer: Told, method: str, path: str) -> None:
    seen = (method, path, answer)
    assert answer.status == 401, seen
    assert answer.field("WWW-Authenticate") == "Bearer", seen
    assert answer.field("Allow") is None, seen
    assert "Access-Control" not in answer.head, seen
    assert WORKER.encode() not in answer.body, seen
    assert SECRET.encode() not in answer.body, seen
    assert KEY.encode() not in answer.body, seen
    if method == "HEAD":
        assert answer.body == b"", seen
        return
    known = {"broker_id", "broker_port", "mesh", "server_key", "proof", "tls"}
    facts = set(answer.json) - {"error", "code", "type", "request_id"}
    is_health = method == "GET" and path.rstrip("/") == "/health"
    assert facts <= (known if is_health else set()), seen


def test_01_a_method_that_does_not_exist_is_refused_too(
    closed: ClosedMesh, paths: list[str]
) -> None:
    before = closed.rejected()
    asked = [(method, path) for path in OF_EACH_DOOR for method in NO_METHODS]
    address = closed.inside.address
    told = closed.stranger.all_of(
        [StrangersAsk(head(method, path, host=address)) for method, path in asked]
    )
    assert {each.status for each in told} <= {400, 401}
    assert not any(each.field("Allow") for each in told)
    assert (closed.rejected() - before).total() == len(asked)


@pytest.mark.parametrize("path", OF_EACH_DOOR)
def test_01_what_is_nearly_a_key_is_none(closed: ClosedMesh, path: str) -> None:
    shown = [*nearly(KEY), *tokens_of_no_use(closed)]
    before = closed.rejected()
    address = closed.inside.address
    heads = [head("GET", path, *lines, host=address) for lines in shown]
    told = closed.stranger.all_of([StrangersAsk(each) for each in heads])
    for lines, answer in zip(shown, told, strict=True):
        assert answer.status in (400, 401), (lines, answer)
        assert SECRET.encode() not in answer.body
        assert WORKER.encode() not in answer.body
    assert (closed.rejected() - before).total() == len(shown)


def nearly(key: str) -> list[tuple[str, ...]]:
    """Return lines of heads that show no key, though each comes near."""
    bearer = "Authorization: Bearer "
    good = bearer + key
    wrong = [
        "", key[:-1], key + "x", key.upper(), key[::-1], f"{key},{key}", f"{key}%00", f"%{key}",
        f'"{key}"', f"{key}\xa0", f"\xef\xbb\xbf{key}", "\xff\xfe", key.replace("e", "\xe9"),
        f"{key};q=1", f"{key} {key}", "null", "x" * 8000, "d8_" + "0" * 64, "d8l_" + "0" * 64,
        # it looks as if it had expired
        "eyJhbGciOiJub25lIn0.eyJleHAiOjE2MDAwMDAwMDAsInN1YiI6ImFkbWluIn0.",
    ]  # fmt: skip
    return [
        (),
        *((bearer + each,) for each in wrong),
        *((f"x-api-key: {each}",) for each in wrong),
        (good, good),
        (good, bearer + "x"),
        (bearer + "x", good),
        (good, "authorization: Bearer"),
        (f"X-Api-Key: {key}", f"x-api-key: {key}"),
        (f"Authorization: Basic {key}",),
        (f"Authorization: {key}",),
        (f"Authorization: Bearer{key}",),
        (f"Authorization: Bearer\x00{key}",),
        (f"{good}\x00",),
        (f"Authorization : Bearer {key}",),
        (f"Proxy-Authorization: Bearer {key}",),
        (f"Cookie: token={key}; Authorization=Bearer {key}",),
        (f"X-Authorization: Bearer {key}",),
        (f"X-D8-Link: {'a' * 32}", "Authorization: Bearer d8l_" + "0" * 64),
        ("X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "Forwarded: for=127.0.0.1"),
    ]


_made: dict[str, str] = {}


def tokens_of_no_use(closed: ClosedMesh) -> list[tuple[str, ...]]:
    """Return heads with a token that was revoked, and with parts of one that was not."""
    if not _made:
        _made["revoked"] = closed.token("create", "revoked", "--scope", "admin")
        _made["good"] = closed.token("create", "good", "--scope", "admin")
        until(lambda: all(status_with(closed, each) == 200 for each in _made), "they are known")
        closed.token("revoke", "revoked")
        until(lambda: status_with(closed, "revoked") == 401, "it is of no use", 5.0)
    good = _made["good"]
    wrong = [_made["revoked"], good[:-1], good.upper(), good.removeprefix("d8_"), good + "0"]
    return [(f"Authorization: Bearer {each}",) for each in wrong]


def status_with(closed: ClosedMesh, name: str) -> int:
    return closed.stranger.ask("GET", "/health", f"Authorization: Bearer {_made[name]}").status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/api/tasks/submit", "/v1/files", "/api/chat", "/nothing"])
def test_01_the_body_of_who_has_no_key_is_not_waited_for(
    closed: ClosedMesh, path: str, method: str
) -> None:
    sized = f"Content-Length: {LARGE_BYTES}"
    address = closed.inside.address
    lines = [
        (sized, "Expect: 100-continue"),
        (sized,),
        ("Transfer-Encoding: chunked", "Expect: 100-continue"),
        ("Transfer-Encoding: chunked",),
    ]
    heads = [head(method, path, *each, host=address) for each in lines]
    # nothing of the body has been sent when the answer comes; then all of it is
    told = closed.stranger.all_of([StrangersAsk(each, rest_bytes=LARGE_BYTES) for each in heads])
    for answer in told:
        assert answer.status == 401, answer  # and not 100
        assert answer.field("Connection") == "close"


def test_01_a_preflight_tells_nothing_of_what_is_there(closed: ClosedMesh) -> None:
    def preflight(path: str, origin: str) -> Told:
        asked = ("Access-Control-Request-Method: POST", f"Origin: {origin}")
        return closed.stranger.ask("OPTIONS", path, *asked)

    ours = "http://localhost:3000"
    known, unknown = (preflight(path, ours) for path in ("/v1/models", "/v1/nothing"))
    assert (known.status, known.body) == (unknown.status, unknown.body) == (204, b"")
    assert without_date(known) == without_date(unknown)
    for path in ("/v1/models", "/v1/nothing", "/api/tasks", "/nothing"):
        for origin in ("http://evil.example", "null"):
            refused = preflight(path, origin)
            assert refused.status == 403
            assert "Access-Control" not in refused.head
    assert preflight("/api/tasks", ours).status == 403


def without_date(told: Told) -> list[str]:
    return [line for line in told.head.split("\r\n") if not line.startswith("Date:")]


def test_01_who_has_no_key_finds_the_broker_all_the_same(closed: ClosedMesh) -> None:
    told = closed.stranger.ask("GET", "/health").json
    known = closed.health()
    for name in ("broker_id", "broker_port", "mesh", "server_key", "proof"):
        assert told[name] == known[name]


def test_01_who_shows_the_key_is_let_in(closed: ClosedMesh) -> None:
    for line in (f"Authorization: Bearer {KEY}", f"x-api-key: {KEY};priority=3"):
        told = closed.stranger.ask("GET", "/api/workers/list", line)
        assert told.status == 200
        assert WORKER.encode() in told.body


ALLOWED: Final = {
    TokenScope.CHAT: {"/v1/models", "/api/tags", "/v1/files", "/health", "/api/models"},
    TokenScope.SUBMIT: {"/api/tasks", "/api/workers/list", "/api/stats", "/health", "/api/models"},
    TokenScope.WORK: {"/health"},
    TokenScope.ADMIN: {
        "/v1/models", "/api/tags", "/v1/files", "/health", "/api/models", "/api/tasks",
        "/api/workers/list", "/api/stats", "/api/join",
    },
}  # fmt: skip


@pytest.mark.parametrize("scope", ALLOWED)
def test_01_a_token_is_good_for_its_scope_alone(closed: ClosedMesh, scope: TokenScope) -> None:
    shown = f"Authorization: Bearer {closed.token('create', scope.value, '--scope', scope.value)}"
    until(lambda: closed.stranger.ask("GET", "/health", shown).status == 200, "it is known", 10.0)
    for path in sorted(ALLOWED[TokenScope.ADMIN]):
        told = closed.stranger.ask("GET", path, shown)
        status = told.status
        assert status == (200 if path in ALLOWED[scope] else 403), (path, told)
    pull = closed.stranger.ask("POST", "/api/pull", shown, body=b"{}").status
    assert pull == (400 if scope is TokenScope.ADMIN else 403)
    poll = closed.stranger.ask("GET", "/api/workers/nobody/tasks", shown).status
    assert poll == (404 if scope in (TokenScope.WORK, TokenScope.ADMIN) else 403)


def test_18_a_status_page_is_closed_too(closed: ClosedMesh) -> None:
    asked = [(method, path) for method in METHODS for path in ("/health", "/", "/nothing")]
    for method, path in asked:
        told = closed.stranger.ask(method, path, port=7200)
        assert told.status == 401, (method, path, told)
        assert WORKER.encode() not in told.body
    shown = f"Authorization: Bearer {KEY}"
    assert WORKER.encode() in closed.stranger.ask("GET", "/health", shown, port=7200).body
    assert closed.stranger.ask("POST", "/health", shown, port=7200).status == 405
    for (lines,) in [each for each in nearly(KEY) if len(each) == 1]:
        assert closed.stranger.ask("GET", "/health", lines, port=7200).status in (400, 401), lines


def test_own_nodes_come_from_another_machine_and_through_the_web_port_alone(
    closed: ClosedMesh, tmp_path: Path
) -> None:
    url = f"http://{closed.inside.address}:7001"
    with_key: dict[str, str] = {"D8_DATA_DIR": str(tmp_path / "a"), "WORKER_ID": "from-afar"}
    closed.start(closed.outside, "worker", **with_key)
    until(lambda: "from-afar" in live(closed), "it is there")
    closed.inside.block_tcp(7010, 7019)
    try:
        tunnelled = {"D8_DATA_DIR": str(tmp_path / "b"), "WORKER_ID": "through-the-web"}
        closed.start(closed.outside, "worker", ORCHESTRATOR_URL=url, **tunnelled)
        until(lambda: "through-the-web" in live(closed), "it is there")
        keyless = {"D8_DATA_DIR": str(tmp_path / "c"), "WORKER_ID": "keyless", "D8_MESH_KEY": ""}
        log = closed.start(closed.outside, "worker", ORCHESTRATOR_URL=url, **keyless)
        until(lambda: "refuses this worker" in log.read_text("utf-8"), "it says so")
        assert "keyless" not in live(closed)
    finally:
        closed.inside.unblock_tcp(7010, 7019)


def live(closed: ClosedMesh) -> set[str]:
    listed = closed.near("/api/workers/list")["workers"]
    return {each["worker_id"] for each in listed if each["status"] != "offline"}
