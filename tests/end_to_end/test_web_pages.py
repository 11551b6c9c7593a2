"""What web pages can do here, in a real browser: those from elsewhere nothing at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from werkzeug.exceptions import NotFound
from werkzeug.routing import Map, Rule

from d8mesh.apps.orchestrators import ask
from d8mesh.config import Config
from d8mesh.doors.batches.door import batch_runner, batches_door
from d8mesh.doors.llm.catalogue import ModelCatalogue
from d8mesh.doors.llm.chats import Chats
from d8mesh.doors.openai.described import OpenAiProblem
from d8mesh.doors.openai.errors import openai_problem
from d8mesh.doors.rest.api import rest_door
from d8mesh.doors.tunnel import Exchange, tunnel_door
from d8mesh.doors.waiting import Places
from d8mesh.http.guard import Rejections
from d8mesh.http.routes import HttpRoute
from d8mesh.nodes.client.aio.node import AsyncNode
from d8mesh.processes.web_main import _llm_doors as llm_doors
from tests.doors.llm_mesh import CHAT as CHAT_MODEL
from tests.doors.llm_mesh import EMBEDDER, LlmMesh, llm_mesh, machine
from tests.end_to_end.browser import PAGE_S, Pages, Rebinding, browser_path, browsing
from tests.end_to_end.processes import PATIENCE_S

JSON: Final = {"Content-Type": "application/json"}
#: On a loaded machine a page may take long for all its attempts.
pytestmark = pytest.mark.timeout(2 * PAGE_S)
#: A type that nobody runs, and a worker that asks for it over REST when a page has it do so.
TYPE: Final = "kept"
WORKER: Final = "poller"
#: Whose pages the mesh is told to let in.
FRIEND: Final = "friend.test"


def call(method: str, path: str, body: object = None, **headers: str) -> dict[str, Any]:
    """Return a request as pages make it."""
    if body is None:
        return {"method": method, "path": path, "headers": headers}
    text = body if isinstance(body, str) else json.dumps(body)
    return {"method": method, "path": path, "headers": {**JSON, **headers}, "body": text}


BATCH: Final = {
    "input_file_id": "file-1",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}
BATCHES: Final = [
    *(call("GET", path) for path in ("/v1/files", "/v1/files/file-1", "/v1/batches")),
    *(call("GET", path) for path in ("/v1/files/file-1/content", "/v1/batches/batch_1")),
    call("POST", "/v1/files", "x"),
    call("DELETE", "/v1/files/file-1"),
    call("POST", "/v1/batches", BATCH),
    call("POST", "/v1/batches/batch_1/cancel", {}),
]


def closed_calls(task_id: str) -> list[dict[str, Any]]:
    """Return calls of REST, of the tunnel, of files and batches, as such as change something."""
    of = f"/api/tasks/{task_id}"
    worker = {"worker_id": "page", "worker_type": "page", "capabilities": {"task_types": [TYPE]}}
    report = {"worker_id": WORKER, "result": {"success": True, "output": "x"}}
    return [
        *(
            call("GET", path)
            for path in ("/health", "/api/stats", "/api/tasks", "/api/tasks/queue")
        ),
        *(call("GET", f"{of}/{what}") for what in ("wait?timeout_s=0", "stream", "explain")),
        *(call("GET", path) for path in ("/api/models", "/api/workers/list", "/api/workers/stats")),
        call("GET", f"/api/tasks/status/{task_id}"),
        call("GET", f"/api/workers/{WORKER}/tasks"),
        call("POST", "/api/tasks/submit", {"type": TYPE, "data": {}}),
        call("POST", "/api/tasks/submit_batch", {"tasks": [{"type": TYPE, "data": {}}]}),
        call("POST", f"{of}/cancel", {}),
        call("POST", f"{of}/replay", {}),
        call("POST", f"{of}/result", report),
        call("POST", "/api/workers/results", report | {"task_id": task_id}),
        call("POST", "/api/workers/register", worker),
        call("POST", "/api/workers/unregister", {"worker_id": WORKER}),
        call("POST", f"/api/workers/{WORKER}/heartbeat", {}),
        call("POST", f"/api/workers/{WORKER}/unregister", {}),
        call("POST", "/api/mesh/exchange?wait=0", "", **{"X-D8-Link": "0" * 32}),
        *BATCHES,
    ]


#: Where the doors of language models answer a page of their own, by door.
MESSAGES: Final = [{"role": "user", "content": "hello"}]
CHAT: Final = {"model": CHAT_MODEL, "messages": MESSAGES}
MODEL: Final = {"model": CHAT_MODEL}
KEY: Final = {"Authorization": "Bearer sk-page"}
OLLAMA: Final = [
    *(call("GET", path) for path in ("/", "/api/version", "/api/tags", "/api/ps")),
    call("POST", "/api/show", MODEL),
    call("POST", "/api/chat", CHAT),
    call("POST", "/api/generate", MODEL | {"prompt": "hello"}),
    call("POST", "/api/embed", {"model": EMBEDDER, "input": "hello"}),
    call("POST", "/api/embeddings", {"model": EMBEDDER, "prompt": "hello"}),
    call("POST", "/api/pull", MODEL),
    call("POST", "/api/create", {"model": "other", "from": CHAT_MODEL}),
    call("POST", "/api/push", MODEL),
    call("POST", "/api/copy", {"source": CHAT_MODEL, "destination": "n"}),
    call("DELETE", "/api/delete", MODEL),
    call("GET", f"/api/blobs/sha256:{'0' * 64}"),
    call("POST", f"/api/blobs/sha256:{'0' * 64}", "x"),
    call("GET", "/api/status"),
    *(call("POST", path) for path in ("/api/me", "/api/signout", "/api/experimental/x")),
    call("DELETE", "/api/user/keys/x"),
]
OPENAI: Final = [
    call("GET", "/v1/models", **KEY),
    call("GET", f"/v1/models/{CHAT_MODEL}"),
    call("POST", "/v1/chat/completions", CHAT | {"stream": True}, **KEY),
    call("POST", "/v1/completions", MODEL | {"prompt": "hello", "max_tokens": 3}, **KEY),
    call("POST", "/v1/embeddings", {"model": EMBEDDER, "input": "hello"}, **KEY),
    call("POST", "/v1/responses", MODEL | {"input": "hello"}, **KEY),
]
ANTHROPIC: Final = [
    call("POST", "/v1/messages", CHAT | {"max_tokens": 5}, **{"x-api-key": "k"}),
    call("POST", "/v1/messages/count_tokens", CHAT, **{"x-api-key": "k"}),
    *(call("GET", f"/v1/messages/batches{more}") for more in ("", "/x")),
    *(call("POST", f"/v1/messages/batches{more}", {}) for more in ("", "/x/cancel")),
    call("DELETE", "/v1/messages/batches/x"),
]
#: Of the doors that are for pages too; files and batches, as REST, are for none.
LLM_CALLS: Final = [*OLLAMA, *OPENAI, *ANTHROPIC]
#: Those that ask a model.
ASKING: Final = (
    *("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/v1/chat/completions"),
    *("/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"),
)
#: Every way that a page has, by what it asks for.
WAYS: Final = {
    "GET": ["fetch", "xhr", "simple", "img", "script", "style", "frame", "form get", "events"],
    "POST": [
        *("fetch", "xhr", "simple", "beacon"),
        *("form text/plain", "form urlencoded", "form multipart"),
    ],
    "other": ["fetch", "xhr"],
}
SOCKETS: Final = ("/api/tasks", f"/api/workers/{WORKER}/tasks", "/api/tags", "/v1/models")


async def all_routes(folder: Path) -> list[HttpRoute]:
    """Return the routes of all doors, with nothing behind them."""
    config = Config(mesh="none", interfaces=("127.0.0.1",), data_dir=str(folder))
    endpoint = "tcp://127.0.0.1:9"
    node = AsyncNode(config, endpoint=endpoint, url=None)
    exchange, places = Exchange(endpoint), Places(1)
    catalogue = ModelCatalogue(node, lists_cloud=False)
    doors = [
        rest_door(node, places, Rejections()),
        tunnel_door(exchange),
        *llm_doors(config, node, Chats(node, catalogue, keeps_all=False), catalogue),
        batches_door(batch_runner(config, node, catalogue), openai_problem, OpenAiProblem),
    ]
    await exchange.close()
    await node.close(0)
    return [route for door in doors for route in door.routes]


def test_the_pages_try_every_route_of_every_door(tmp_path: Path) -> None:
    routes = asyncio.run(all_routes(tmp_path))
    rules = [Rule(each.rule, methods=[each.method], endpoint=each) for each in routes]
    matcher = Map(rules).bind("d8")
    tried = set()
    for each in [*closed_calls("task"), *LLM_CALLS]:
        with contextlib.suppress(NotFound):
            path = each["path"].partition("?")[0]
            tried.add(matcher.match(path, method=each["method"])[0])
    assert [f"{each.method} {each.rule}" for each in routes if each not in tried] == []


@pytest.fixture(scope="module")
def running() -> Iterator[LlmMesh]:
    browser_path()
    # The worker that polls is there for as long as a page takes.
    settings = {"D8_ORIGINS": f"http://{FRIEND}:*", "HEARTBEAT_TIMEOUT": "3600"}
    with llm_mesh(machine(), settings=settings) as made:
        yield made


@pytest.fixture
def pages() -> Iterator[Pages]:
    with closing(Pages()) as made:
        yield made


@pytest.fixture
def task_id(running: LlmMesh) -> str:
    """A task that waits for a worker who polls, and is there."""
    capabilities = {"task_types": [TYPE]}
    worker = {"worker_id": WORKER, "worker_type": "x", "capabilities": capabilities}
    assert post(running.url, "/api/workers/register", worker)["success"]
    found: str = post(running.url, "/api/tasks/submit", {"type": TYPE, "data": {}})["task_id"]
    return found


def post(url: str, path: str, body: object) -> Any:
    asked = urllib.request.Request(url + path, json.dumps(body).encode(), JSON)
    with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
        return json.load(answer)


class Seen:
    """What of the mesh a page may have changed, or been refused, since this was made."""

    def __init__(self, running: LlmMesh) -> None:
        self._running = running
        self._before, self._refused = self._look(), self._counts()

    def _look(self) -> tuple[object, ...]:
        url, (standin,) = self._running.url, self._running.standins
        tasks = ask(url, "/api/tasks?limit=1000&order=newest")["tasks"]
        workers = ask(url, "/api/workers/list")["workers"]
        return (
            [(each["task_id"], each["state"]) for each in tasks],
            [(each["worker_id"], each["status"]) for each in workers],
            [each["name"] for each in ask(url, "/api/models")["models"]],
            len(standin.counters.prompts),
        )

    def _counts(self) -> dict[str, int]:
        return dict(ask(self._running.url, "/health")["rejected"]["rest"])

    def check_nothing_changed(self) -> None:
        assert self._look() == self._before

    def refused(self, code: str) -> int:
        return self._counts().get(code, 0) - self._refused.get(code, 0)


def port_of(running: LlmMesh) -> int:
    return urlsplit(running.url).port or 0


def plan(running: LlmMesh, calls: Sequence[dict[str, Any]], *hosts: str) -> dict[str, Any]:
    targets = [f"http://{host}:{port_of(running)}" for host in hosts]
    return {
        "targets": targets,
        "calls": calls,
        "ways": WAYS,
        "sockets": SOCKETS,
        "patience_ms": 3000,
    }


def came_of_it(found: Sequence[dict[str, Any]]) -> set[str]:
    """Return the attempts that let a page see or show anything."""
    return {
        f"{each['method']} {each['path']} by {each['way']} at {each['target']}"
        for each in found
        if each["seen"] in ("readable", "opened")
        or (each["seen"], each["way"]) == ("loaded", "img")
    }


def short(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return some of them: what changes most."""
    words = ("/cancel", "/submit", "/chat", "/tasks", "/messages", "/files", "exchange")
    return [each for each in calls if each["path"].partition("?")[0].endswith(words)]


def test_a_page_from_elsewhere_can_do_none_of_the_worst(
    running: LlmMesh, pages: Pages, task_id: str
) -> None:
    calls = short([*closed_calls(task_id), *LLM_CALLS])
    check_page(running, pages, calls, "evil")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["evil", "quiet", "sandboxed", "neighbour"])
def test_a_page_from_elsewhere_can_neither_ask_nor_list_nor_cancel(
    running: LlmMesh, pages: Pages, task_id: str, kind: str
) -> None:
    check_page(running, pages, [*closed_calls(task_id), *LLM_CALLS], kind)


def check_page(running: LlmMesh, pages: Pages, calls: Sequence[dict[str, Any]], kind: str) -> None:
    """Have a page of this kind make these calls in all ways; it must come to nothing."""
    # A browser tells more (Sec-Fetch-Site) to an address of its own machine than to a name.
    hosts = ("pool",) if kind == "neighbour" else ("127.0.0.1", "pool")
    head = '<meta name="referrer" content="no-referrer">' if kind == "quiet" else ""
    path = pages.add_attempts("attempts", plan(running, calls, *hosts), head=head)
    if kind == "sandboxed":
        path = pages.add("frame", f'<iframe sandbox="allow-scripts allow-forms" src="{path}">')
    before = Seen(running)
    host = "pool" if kind == "neighbour" else "evil.test"
    with browsing(browser_path(), f"http://{host}:{pages.port}{path}", ("evil.test", "pool")):
        told = pages.report()
    assert told["origin"] == ("null" if kind == "sandboxed" else f"http://{host}:{pages.port}")
    assert len(told["found"]) > len(hosts) * len(calls)
    assert came_of_it(told["found"]) == set()
    before.check_nothing_changed()
    assert before.refused("http.origin") > len(told["found"]) / 2


@pytest.mark.slow
def test_a_page_whose_host_has_been_rebound_can_do_nothing_either(
    running: LlmMesh, pages: Pages, task_id: str
) -> None:
    calls = [*closed_calls(task_id), *LLM_CALLS]
    made = plan(running, calls, "rebound.test") | {"targets": [""]}
    page = pages._pages[pages.add_attempts("attempts", made)]
    before = Seen(running)
    with closing(Rebinding(page, port_of(running))) as rebinding:
        url = f"http://rebound.test:{rebinding.port}/page/attempts"
        with browsing(browser_path(), url, ("rebound.test",)):
            told = pages.report()
    answers = [each for each in told["found"] if each["way"] in ("fetch", "xhr")]
    assert {each.get("status") for each in answers} == {403}
    assert not any(each["seen"] in ("opened", "loaded") for each in told["found"])
    before.check_nothing_changed()
    assert before.refused("http.host") >= len(answers)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["localhost", FRIEND])
def test_a_page_that_may_use_the_doors_of_models_may_use_no_others(
    running: LlmMesh, pages: Pages, task_id: str, host: str
) -> None:
    path = pages.add_attempts("attempts", plan(running, closed_calls(task_id), "127.0.0.1", "pool"))
    before = Seen(running)
    with browsing(browser_path(), f"http://{host}:{pages.port}{path}", (FRIEND, "pool")):
        told = pages.report()
    assert came_of_it(told["found"]) == set()
    before.check_nothing_changed()


@pytest.mark.parametrize("host", ["localhost", FRIEND])
def test_a_page_that_a_door_is_for_can_use_it(running: LlmMesh, pages: Pages, host: str) -> None:
    made = plan(running, LLM_CALLS, "127.0.0.1", "pool")
    ways = {"GET": ["fetch", "xhr"], "POST": ["fetch"], "other": ["fetch"]}
    patient = {"ways": ways, "sockets": [], "patience_ms": 1000 * PATIENCE_S}
    path = pages.add_attempts("attempts", made | patient)
    with browsing(browser_path(), f"http://{host}:{pages.port}{path}", (FRIEND, "pool")):
        told = pages.report()
    assert {each["seen"] for each in told["found"]} == {"readable"}  # also what is refused
    good = {each["path"] for each in told["found"] if each["status"] == 200}
    assert set(ASKING) <= good
    for each in told["found"]:
        if each["path"] in ASKING:
            assert each["task"], each
