"""Through a reverse proxy, as ``docs/PROXY.md`` has it: streams, uploads, polls, the tunnel."""

from __future__ import annotations

import http.client
import io
import json
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ollama
import openai
import pytest

from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import ask
from d8mesh.config import Config
from d8mesh.nodes.client import Client
from tests.doors.llm_mesh import CHAT, LlmMesh, llm_mesh, machine
from tests.end_to_end.nginx import PROGRAM, Nginx
from tests.http.certified import certified

pytestmark = [
    pytest.mark.skipif(PROGRAM is None and not os.environ.get("CI"), reason="no nginx here"),
    pytest.mark.timeout(300),
]
KEY = "the-key-of-a-mesh-behind-a-proxy"
#: The proxy's own address, and whose it is not.
HOST, CALLER = "127.0.0.3", "127.0.0.2"
PATIENCE_S = 60.0
SHOWN = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    settings = {"D8_MESH_KEY": KEY, "D8_TRUSTED_PROXY": "127.0.0.1", "D8_ALLOWED_HOSTS": HOST}
    with llm_mesh(machine(tokens_per_s=40), settings=settings) as made:
        yield made


@pytest.fixture(scope="module")
def proxy(mesh: LlmMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    rest, (port,) = urlsplit(mesh.url).port or 0, free_ports(1)
    made = Nginx(tmp_path_factory.mktemp("nginx"), certified(), (HOST, port), rest)
    yield made
    made.stop()
    assert "buffered to a temporary file" not in made.errors()


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certified().certificate))
    context.check_hostname = False  # it is made for 127.0.0.1
    return context


def asked(
    proxy: Nginx, method: str, path: str, body: Any = None, **fields: str
) -> tuple[int, dict[str, Any]]:
    """Ask through the proxy, from an address of our own."""
    connection = http.client.HTTPSConnection(
        *proxy.place, timeout=PATIENCE_S, source_address=(CALLER, 0), context=trusting()
    )
    with closing(connection):
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        content = None if body is None else json.dumps(body)
        headers |= {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def openai_client(proxy: Nginx) -> openai.OpenAI:
    url = f"https://{HOST}:{proxy.place[1]}/v1"
    http_client = openai.DefaultHttpxClient(verify=trusting())
    return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, http_client=http_client)


def test_16_whoever_comes_through_the_proxy_needs_the_key_whatever_it_writes(
    mesh: LlmMesh, proxy: Nginx
) -> None:
    lies = {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1"}
    assert asked(proxy, "GET", "/api/stats")[1]["code"] == "access.token"
    assert asked(proxy, "GET", "/api/stats", **lies)[1]["code"] == "access.token"
    assert asked(proxy, "GET", "/api/stats", **SHOWN)[0] == 200
    assert asked(proxy, "GET", "/api/stats", **SHOWN, Host="evil.example")[1]["code"] == "http.host"
    # past it: not near any more, and no name of this machine
    rest = http.client.HTTPConnection("127.0.0.1", urlsplit(mesh.url).port or 0, PATIENCE_S)
    with closing(rest):
        rest.request("GET", "/api/stats", headers=lies)
        assert json.loads(rest.getresponse().read())["code"] == "access.token"


def test_the_caller_is_whom_the_proxy_saw(mesh: LlmMesh, proxy: Nginx) -> None:
    question = {"model": CHAT, "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    assert asked(proxy, "POST", "/v1/chat/completions", question, **SHOWN)[0] == 200
    told = ask(mesh.url, "/api/tasks?door=openai&order=newest")["tasks"][0]
    assert CALLER in json.dumps(told)


def test_each_word_of_a_chat_is_passed_on_when_it_comes(proxy: Nginx) -> None:
    came: list[float] = []
    with openai_client(proxy) as client:
        stream = client.chat.completions.create(
            model=CHAT,
            messages=[{"role": "user", "content": "say 40 words"}],
            max_tokens=100,
            stream=True,
        )
        came = [time.monotonic() for chunk in stream if chunk.choices]
    assert len(came) > 20
    assert came[-1] - came[0] > 0.5  # a second's worth of words; held back they come at once


def test_ollamas_client_streams_too(proxy: Nginx) -> None:
    url = f"https://{HOST}:{proxy.place[1]}"
    client = ollama.Client(host=url, headers=SHOWN, verify=trusting())
    with closing(client):
        said = list(client.chat(CHAT, [{"role": "user", "content": "x"}], stream=True))
    assert said[-1].done
    assert len(said) > 3


def test_a_file_of_a_batch_is_passed_on_as_it_comes(proxy: Nginx) -> None:
    line = json.dumps({"custom_id": "%d", "method": "POST", "url": "/v1/chat/completions"})
    content = b"".join(b"%s\n" % (line % n).encode().ljust(1000) for n in range(30_000))
    with openai_client(proxy) as client:
        kept = client.files.create(file=("rows.jsonl", io.BytesIO(content)), purpose="batch")
        assert kept.bytes == len(content)
        assert client.files.content(kept.id).read() == content
        client.files.delete(kept.id)


def test_a_long_poll_waits_and_ends_with_the_task(proxy: Nginx) -> None:
    body = {"type": "nobody_runs_this", "data": {}}
    task = asked(proxy, "POST", "/api/tasks/submit", body, **SHOWN)[1]["task_id"]
    begun = time.monotonic()
    waited = asked(proxy, "GET", f"/api/tasks/{task}/wait?timeout=1", **SHOWN)
    assert time.monotonic() - begun >= 0.9
    assert waited[1]["status"] == "pending"
    assert asked(proxy, "POST", f"/api/tasks/{task}/cancel", {}, **SHOWN)[0] == 200
    assert (
        asked(proxy, "GET", f"/api/tasks/{task}/wait?timeout=20", **SHOWN)[1]["status"] == "failed"
    )


def test_the_tunnel_goes_through_and_outlives_a_restart_of_the_proxy(
    mesh: LlmMesh, proxy: Nginx, tmp_path: Path
) -> None:
    config = Config(
        mesh=mesh.running.config.mesh,
        interfaces=("127.0.0.1",),
        data_dir=str(tmp_path),
        mesh_key=KEY,
        tls_trust=(certified().fingerprint,),
    )
    with Client(f"https://{HOST}:{proxy.place[1]}", config=config) as client:
        assert client.wait_connected(PATIENCE_S)
        assert client.is_over_http
        results = client.map("echo", [{"n": n} for n in range(500)], timeout=PATIENCE_S)
        assert [result["output"]["n"] for result in results] == list(range(500))
        tasks = client.submit_many("echo", [{"n": n} for n in range(200)])
        proxy.stop()
        proxy.start()
        assert [task.result(PATIENCE_S)["output"]["n"] for task in tasks] == list(range(200))
        assert client.is_over_http
