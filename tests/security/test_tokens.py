"""Access tokens with the clients that people have: let in, counted, bounded, revoked.

The mesh has a key. Every request says that it was passed on for somebody else, so none is taken for
one of a program of this machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anthropic
import ollama
import openai
import pytest

from d8mesh.edge.token_file import TokenFile
from tests.doors.llm_mesh import CHAT, EMBEDDER, machine
from tests.end_to_end.processes import until
from tests.security.abuse import Abused, abused_mesh
from tests.security.raw_http import RawHttp, head

KEY: Final = "the-key-of-this-mesh-4711"
FAR: Final = {"X-Forwarded-For": "192.168.77.7"}
FAR_LINE: Final = "X-Forwarded-For: 192.168.77.7"
HELLO: Final[list[Any]] = [{"role": "user", "content": "hello"}]
#: An answer that takes much longer than a test.
LONG: Final[list[Any]] = [{"role": "user", "content": "say 100000 words"}]
#: Usage is written every few seconds, on a busy machine later.
WRITTEN_S: Final = 40.0

#: every secret that a test has made
_secrets: Final[list[str]] = []


@pytest.fixture(scope="module")
def abused() -> Iterator[Abused]:
    with abused_mesh(machine(), settings={"D8_MESH_KEY": KEY}) as made:
        yield made


def command(abused: Abused, *arguments: str) -> str:
    """Run the command `token`, as a person does; return what it prints."""
    data = ["--data", str(abused.mesh.folder)]
    argv = [sys.executable, "-m", "d8mesh", "token", *arguments, *data]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def created(abused: Abused, name: str, *more: str) -> str:
    """Return a new token, which the web process knows by now."""
    secret = command(abused, "create", name, *more)
    _secrets.append(secret)
    until(lambda: status_with(abused, secret) != 401, "it is known", 10.0)
    return secret


def status_with(abused: Abused, secret: str, path: str = "/health") -> int:
    return abused.http.ask("GET", path, b"", FAR_LINE, f"Authorization: Bearer {secret}").status


def usage_of(abused: Abused, name: str) -> dict[str, Any]:
    told = json.loads(command(abused, "list", "--json"))["tokens"]
    (found,) = [each for each in told if each["name"] == name]
    return dict(found)


def openai_client(abused: Abused, secret: str) -> openai.OpenAI:
    url = f"{abused.mesh.url}/v1"
    return openai.OpenAI(base_url=url, api_key=secret, default_headers=FAR, max_retries=0)


def anthropic_client(abused: Abused, secret: str) -> anthropic.Anthropic:
    url = abused.mesh.url
    return anthropic.Anthropic(base_url=url, api_key=secret, default_headers=FAR, max_retries=0)


def ollama_client(abused: Abused, secret: str) -> ollama.Client:
    shown = {"Authorization": f"Bearer {secret}"}
    return ollama.Client(host=abused.mesh.url, headers={**FAR, **shown})


def test_01_without_a_token_each_client_says_so_in_its_own_way(abused: Abused) -> None:
    with abused.refused("rest", "access.token", times=3):
        with openai_client(abused, "sk-none") as asked, pytest.raises(openai.AuthenticationError):
            asked.chat.completions.create(model=CHAT, messages=HELLO)
        with (
            anthropic_client(abused, "sk-none") as other,
            pytest.raises(anthropic.AuthenticationError),
        ):
            other.messages.create(model=CHAT, messages=HELLO, max_tokens=5)
        with ollama_client(abused, "x") as third, pytest.raises(ollama.ResponseError) as error:
            third.chat(CHAT, HELLO)
        assert error.value.status_code == 401


def test_01_a_token_is_an_api_key_and_what_it_takes_is_counted(abused: Abused) -> None:
    secret = created(abused, "people")
    read = written = 0
    with openai_client(abused, secret) as asked:
        assert CHAT in [each.id for each in asked.models.list()]
        told = asked.chat.completions.create(model=CHAT, messages=HELLO)
        assert told.usage is not None
        read, written = told.usage.prompt_tokens, told.usage.completion_tokens
        coming = asked.chat.completions.create(
            model=CHAT, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        (usage,) = [each.usage for each in coming if each.usage is not None]
        read, written = read + usage.prompt_tokens, written + usage.completion_tokens
        vectors = asked.embeddings.create(model=EMBEDDER, input=["a", "b"])
        read += vectors.usage.prompt_tokens
    with anthropic_client(abused, secret) as other:
        message = other.messages.create(model=CHAT, messages=HELLO, max_tokens=50)
        read += message.usage.input_tokens
        written += message.usage.output_tokens
    with ollama_client(abused, f"{secret};priority=3") as third:
        chat = third.chat(CHAT, HELLO)
        read += chat.prompt_eval_count or 0
        written += chat.eval_count or 0
    assert read > 0
    assert written > 0

    def is_counted() -> bool:
        found = usage_of(abused, "people")
        return (found["input_tokens"], found["output_tokens"]) == (read, written)

    until(is_counted, f"{read} and {written} tokens are counted", WRITTEN_S)
    found = usage_of(abused, "people")
    assert found["requests"] >= 6
    assert abs(found["last_used_at"] - time.time()) < 300


def test_01_a_batch_is_counted_for_the_token_that_asked_for_it(
    abused: Abused, tmp_path: Path
) -> None:
    secret = created(abused, "batches")
    body = {"model": CHAT, "messages": HELLO}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    rows = [json.dumps({"custom_id": f"c{n}", **line}) for n in range(5)]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    with openai_client(abused, secret) as asked:
        file = asked.files.create(file=tmp_path / "in.jsonl", purpose="batch")
        batch = asked.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        until(lambda: asked.batches.retrieve(batch.id).status == "completed", "it is done", 60.0)
        usage = asked.batches.retrieve(batch.id).usage
    assert usage is not None
    wanted = (usage.input_tokens, usage.output_tokens)

    def is_counted() -> bool:
        found = usage_of(abused, "batches")
        return (found["input_tokens"], found["output_tokens"]) == wanted

    until(is_counted, f"{wanted} are counted", WRITTEN_S)


def test_01_beyond_its_limit_each_client_is_told_when_to_come_again(abused: Abused) -> None:
    secret = created(abused, "bounded", "--limit", "4/h")
    with openai_client(abused, secret) as asked:
        for _ in range(5):  # the first requests of all have seen whether it is known
            try:
                asked.models.list()
            except openai.RateLimitError:
                break
        with pytest.raises(openai.RateLimitError) as one:
            asked.chat.completions.create(model=CHAT, messages=HELLO)
    assert 3000 < int(one.value.response.headers["retry-after"]) <= 3600
    assert one.value.response.headers["x-should-retry"] == "false"
    with (
        anthropic_client(abused, secret) as other,
        pytest.raises(anthropic.RateLimitError) as two,
    ):
        other.messages.create(model=CHAT, messages=HELLO, max_tokens=5)
    assert two.value.response.headers["x-should-retry"] == "false"
    with ollama_client(abused, secret) as third, pytest.raises(ollama.ResponseError) as three:
        third.chat(CHAT, HELLO)
    assert (three.value.status_code, "4/h" in three.value.error) == (429, True)
    told = abused.http.ask("GET", "/api/tags", b"", FAR_LINE, f"x-api-key: {secret}")
    assert told.status == 429
    assert int(told.field("Retry-After") or 0) > 3000
    assert secret not in told.head + told.body.decode()


def test_01_a_token_for_chats_opens_nothing_else(abused: Abused) -> None:
    secret = created(abused, "chats")
    with abused.refused("rest", "access.scope", times=4):
        assert status_with(abused, secret, "/api/tasks") == 403
        assert status_with(abused, secret, "/api/workers/x/tasks") == 403
        assert status_with(abused, secret, "/api/join") == 403
        with ollama_client(abused, secret) as asked, pytest.raises(ollama.ResponseError) as error:
            asked.pull(CHAT)
    assert error.value.status_code == 403


def test_01_who_may_submit_may_not_change_models(abused: Abused) -> None:
    secret = created(abused, "submits", "--scope", "submit")
    shown = (FAR_LINE, f"Authorization: Bearer {secret}")
    with abused.refused("rest", "access.scope", times=2):
        task = {"type": "model_remove", "data": {"model": CHAT}}
        assert abused.http.post("/api/tasks/submit", task, *shown).status == 403
        many = {"tasks": [{"type": "echo", "data": {}}, task]}
        assert abused.http.post("/api/tasks/submit_batch", many, *shown).status == 403


def test_01_who_may_submit_may_not_replay_a_change_of_models_either(abused: Abused) -> None:
    secret = created(abused, "replays", "--scope", "submit")
    shown = (FAR_LINE, f"Authorization: Bearer {secret}")
    cancelled: list[str] = []
    for task in ({"type": "model_remove", "data": {"model": "nobodys"}}, {"type": "nobodys"}):
        told = abused.http.post(
            "/api/tasks/submit", {"data": {}, "run_at": time.time() + 600} | task
        )
        cancelled.append(told.json["task_id"])
        assert abused.http.post(f"/api/tasks/{cancelled[-1]}/cancel", {}).status == 200
    removal, other = cancelled
    before = abused.tasks()
    with abused.refused("rest", "access.scope"):
        assert abused.http.post(f"/api/tasks/{removal}/replay", {}, *shown).status == 403
    assert abused.tasks() == before
    again = abused.http.post(f"/api/tasks/{other}/replay", {}, *shown)
    assert again.status == 201
    assert abused.http.post(f"/api/tasks/{again.json['task_id']}/cancel", {}, *shown).status == 200


def test_01_what_is_under_way_ends_when_its_token_is_revoked(abused: Abused) -> None:
    secret = created(abused, "leaver", "--scope", "chat", "--scope", "submit")
    shown = (FAR_LINE, f"Authorization: Bearer {secret}")
    with openai_client(abused, secret) as asked:
        stream = asked.chat.completions.create(model=CHAT, messages=LONG, stream=True)
        next(iter(stream))
        task_id = stream.response.headers["x-d8-task"]
        others = [
            InBackground(abused.http, "GET", f"/api/tasks/{task_id}/wait?timeout_s=60", *shown),
            InBackground(abused.http, "GET", f"/api/tasks/{task_id}/stream", *shown),
        ]
        until(lambda: all(each.is_connected for each in others), "they wait")
        begun = time.monotonic()
        command(abused, "revoke", "leaver")
        with pytest.raises(openai.APIError, match="revoked"):
            for _ in stream:
                pass
        for each in others:
            each.join()
    assert time.monotonic() - begun < 20
    assert status_with(abused, secret) == 401
    state = json.loads(abused.http.ask("GET", f"/api/tasks/status/{task_id}").body)
    until(
        lambda: abused.http.ask("GET", f"/api/tasks/status/{task_id}").json["state"] == "cancelled",
        f"nobody waits for it: {state}",
    )
    abused.goes_on()


class InBackground:
    """A request that waits for its answer, on a thread."""

    def __init__(self, http: RawHttp, method: str, path: str, *lines: str) -> None:
        self.is_connected = False
        self._http, self._head = http, head(method, path, *lines)
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def join(self) -> None:
        """Wait until the connection has been closed."""
        self._thread.join(30.0)
        assert not self._thread.is_alive()

    def _ask(self) -> None:
        with self._http.connect() as connection:
            connection.sendall(self._head)
            self.is_connected = True
            try:
                while connection.recv(65_536):
                    pass
            except ConnectionResetError:
                return


def test_01_usage_is_there_again_after_the_web_process_has_died(abused: Abused) -> None:
    secret = created(abused, "lasting")
    with openai_client(abused, secret) as asked:
        asked.chat.completions.create(model=CHAT, messages=HELLO)
    until(lambda: usage_of(abused, "lasting")["output_tokens"] > 0, "it is counted", WRITTEN_S)
    before = usage_of(abused, "lasting")
    file = TokenFile(abused.mesh.folder / "orchestrator")
    assert file.usage()[before["id"]].output_tokens == before["output_tokens"]


def test_01_no_secret_is_in_any_file_or_command_line(abused: Abused) -> None:
    created(abused, "kept-nowhere")
    secrets = [each.encode() for each in (*_secrets, KEY)]
    for path in abused.mesh.folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(secret in content for secret in secrets), path
    if sys.platform == "linux":
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                told = place.read_bytes()
            except OSError:
                continue
            assert not any(secret in told for secret in secrets), told
