"""What Ollama's API promises: of the stand-in, and of the real one where it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from d8mesh.apps.demo import free_ports
from d8mesh.backends.backend import ChatRun
from d8mesh.backends.ollama import OllamaBackend
from d8mesh.core.protocol.chat import ChatRequest
from d8mesh.errors import TaskCancelledError
from tests.ollama_standin import OllamaStandin
from tests.standin.calls import ask, call, get, post, text_of

START_S = 30.0
#: Of an answer that is cancelled: a small model on one core needs a while for its first words.
ANSWER_S = 90.0


@pytest.fixture(params=["standin", "real"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "standin":
        with OllamaStandin(tokens_per_s=40.0) as standin:
            yield standin.url
        return
    program = shutil.which("ollama")
    if program is None:
        pytest.skip("no ollama on the PATH")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    settings = os.environ | {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_NUM_PARALLEL": "1"}
    silent = subprocess.DEVNULL
    with subprocess.Popen([program, "serve"], env=settings, stdout=silent, stderr=silent) as served:
        try:
            _await_answer(url)
            yield url
        finally:
            served.terminate()


def _await_answer(url: str) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            get(url, "/")
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


def chat_model(url: str) -> str:
    for row in get(url, "/api/tags").json["models"]:
        shown = post(url, "/api/show", {"model": row["name"]}).json
        if "completion" in shown.get("capabilities", ()):
            return str(row["name"])
    pytest.skip("no model for chats is installed")


def test_the_root_says_that_it_runs(url: str) -> None:
    assert get(url, "/").body == b"Ollama is running"
    assert call(url, "HEAD", "/").body == b""


def test_the_version_is_digits_and_dots(url: str) -> None:
    assert re.match(r"\d+(\.\d+)+", get(url, "/api/version").json["version"])
    assert call(url, "HEAD", "/api/version").status == 200


def test_tags_and_ps_are_lists(url: str) -> None:
    assert isinstance(get(url, "/api/tags").json["models"], list)
    assert isinstance(get(url, "/api/ps").json["models"], list)


def test_an_unknown_path_and_a_wrong_method_are_refused(url: str) -> None:
    assert get(url, "/api/nothing").status == 404
    assert get(url, "/api/chat").status == 405


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/chat", {"model": "nobody"}, 404, "model 'nobody' not found"),
        ("/api/generate", {"model": "nobody", "prompt": "x"}, 404, "model 'nobody' not found"),
        ("/api/show", {"model": "nobody"}, 404, "model 'nobody' not found"),
        ("/api/chat", {}, 400, "model is required"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/generate", {}, 404, "model '' not found"),
        ("/api/chat", b"", 400, "missing request body"),
        ("/api/chat", b"{", 400, ""),
    ],
)
def test_what_is_wrong_is_told_as_an_error(
    url: str, path: str, body: object, status: int, text: str
) -> None:
    answered = post(url, path, body)
    assert answered.status == status
    assert text in answered.json["error"]


def test_a_chat_is_lines_of_json_and_the_last_one_alone_is_done(url: str) -> None:
    model = chat_model(url)
    answered = ask(url, model, "Say hello.", options={"num_predict": 8})
    assert answered.headers["content-type"] == "application/x-ndjson"
    assert [line["done"] for line in answered.lines] == [False] * (len(answered.lines) - 1) + [True]
    assert {line["model"] for line in answered.lines} == {model}
    last = answered.lines[-1]
    assert last["done_reason"] in ("stop", "length")
    assert all(last[name] > 0 for name in ("total_duration", "prompt_eval_count", "eval_count"))


def test_without_a_stream_the_answer_is_one_object(url: str) -> None:
    answered = ask(url, chat_model(url), "Say hello.", stream=False, options={"num_predict": 8})
    assert answered.headers["content-type"].startswith("application/json")
    assert answered.json["done"] is True
    assert text_of([answered.json])


def test_a_load_call_loads_and_an_unload_call_unloads(url: str) -> None:
    model = chat_model(url)
    loaded = post(url, "/api/generate", {"model": model}).json
    assert (loaded["done"], loaded["done_reason"], loaded["response"]) == (True, "load", "")
    assert model in [row["name"] for row in get(url, "/api/ps").json["models"]]
    unloaded = post(url, "/api/chat", {"model": model, "keep_alive": 0}).json
    assert unloaded["done_reason"] == "unload"
    assert unloaded["message"]["content"] == ""


def test_a_duration_without_a_unit_is_refused(url: str) -> None:
    answered = ask(url, chat_model(url), "Hello.", keep_alive="-1")
    assert answered.status == 400
    assert "missing unit in duration" in answered.json["error"]


def test_who_cancels_has_the_model_free_for_others_within_a_second(url: str) -> None:
    model = chat_model(url)
    short = {"num_predict": 1}
    ask(url, model, "Say hello.", options=short)  # it is loaded
    began = time.monotonic()
    ask(url, model, "Say hello.", options=short)
    alone_s = time.monotonic() - began
    pieces: list[object] = []
    run = ChatRun(
        on_piece=pieces.append, is_cancelled=lambda: len(pieces) >= 3, deadline_s=ANSWER_S
    )
    text = "say 2000 words: count from one to two thousand, in words, and leave none out"
    request = ChatRequest(
        messages=({"role": "user", "content": text},), model=model, more={"max_tokens": 4000}
    )
    with pytest.raises(TaskCancelledError):
        OllamaBackend(url).chat(request, run)
    left = time.monotonic()
    ask(url, model, "Say hello.", options=short)  # one answer at a time: it waits for the first
    assert time.monotonic() - left < 1 + 2 * alone_s
