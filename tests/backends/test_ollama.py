"""What a local Ollama offers, which model is chosen, and answers with bounds."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from d8mesh.backends import answer_in_pieces, ollama
from d8mesh.backends.backend import ChatRun
from d8mesh.backends.ollama import OllamaBackend
from d8mesh.backends.ollama.bodies import KEEP_ALIVE
from d8mesh.core.protocol.chat import (
    ChatRequest,
    Completion,
    EmbeddingRequest,
    Embeddings,
    Piece,
    Usage,
)
from d8mesh.core.protocol.messages import Placement
from d8mesh.errors import (
    BackendDeadlineError,
    BackendError,
    BackendStalledError,
    BackendTooLargeError,
    BackendUnavailableError,
    InvalidTaskError,
    TaskCancelledError,
)
from tests.ollama_server import OllamaServer

PATIENCE_S = 30


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as running:
        yield running


QUESTION = ChatRequest(messages=({"role": "user", "content": "one two"},))


def run_of() -> ChatRun:
    return ChatRun(is_cancelled=lambda: False, deadline_s=PATIENCE_S)


def chat(
    backend: OllamaBackend,
    *,
    model: str | None = None,
    pieces: list[str] | None = None,
    deadline_s: float = PATIENCE_S,
    stall_s: float = PATIENCE_S,
) -> Completion:
    request = ChatRequest(messages=({"role": "user", "content": "one two"},), model=model)
    return run(backend, request, pieces=pieces, deadline_s=deadline_s, stall_s=stall_s)


def run(
    backend: OllamaBackend,
    request: ChatRequest,
    *,
    pieces: list[str] | None = None,
    deadline_s: float = PATIENCE_S,
    stall_s: float = PATIENCE_S,
) -> Completion:
    said: list[str] = [] if pieces is None else pieces
    return backend.chat(
        request,
        ChatRun(
            on_piece=lambda piece: said.append(piece.text),
            is_cancelled=lambda: False,
            deadline_s=deadline_s,
            first_token_s=stall_s,
            token_gap_s=stall_s,
        ),
    )


# --- probing --------------------------------------------------------------------------


def test_a_probe_tells_what_is_offered_and_what_is_loaded(server: OllamaServer) -> None:
    seen = OllamaBackend(server.url).probe()
    assert seen.is_up
    assert seen.models == ("deepseek-r1:8b", "qwen2.5:3b")
    assert seen.loaded == ("deepseek-r1:8b",)
    assert seen.reason == ""


def test_a_service_that_is_not_there_is_down_and_the_reason_says_what_to_do() -> None:
    with socket.socket() as taken:  # bound but not listening: refused
        taken.bind(("127.0.0.1", 0))
        seen = OllamaBackend(f"http://127.0.0.1:{taken.getsockname()[1]}").probe()
    assert not seen.is_up
    assert "does not answer" in seen.reason
    assert "DEEPSEEK_BASE_URL" in seen.reason


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".lan", "\u2028"])
def test_a_name_that_no_host_can_have_is_down_too(host: str) -> None:
    seen = OllamaBackend(f"http://{host}:7100").probe()
    assert not seen.is_up
    assert "does not answer" in seen.reason


def test_tags_and_chat_are_all_that_is_needed(server: OllamaServer) -> None:
    server.unknown_paths = frozenset({"/api/ps", "/api/show"})
    backend = OllamaBackend(server.url)
    assert backend.probe().models == server.models
    assert chat(backend).text == "You asked: one two"


def test_a_model_that_comes_into_memory_changes_no_offer(server: OllamaServer) -> None:
    backend = OllamaBackend(server.url)
    before = backend.probe()
    server.loaded = server.models
    assert backend.probe() == before


def test_a_service_without_models_is_down(server: OllamaServer) -> None:
    server.models = ()
    seen = OllamaBackend(server.url).probe()
    assert (seen.is_up, "ollama pull" in seen.reason) == (False, True)
    assert "`models pull NAME`" in seen.reason


@pytest.mark.parametrize(
    "behaviour",
    ["compressed", "drip", "endless_line", "error", "not_json", "redirect", "silent",
     "wrong_shape"],
)  # fmt: skip
def test_a_probe_survives_a_service_that_misbehaves(
    server: OllamaServer, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "PROBE_S", 0.5)
    server.probe_behaviour = behaviour
    seen = OllamaBackend(server.url).probe()
    assert not seen.is_up
    assert server.url in seen.reason or "is it Ollama" in seen.reason
    assert not [path for path, _, _ in server.requests if path == "/elsewhere"]


def test_names_that_could_not_be_asked_for_are_left_out(server: OllamaServer) -> None:
    server.models = ("../../x", "http://evil/x", "-rm", "a\x1b[2J", "x" * 200, "lib/good:1b")
    assert OllamaBackend(server.url).probe().models == ("lib/good:1b",)


def test_the_package_is_imported_by_the_first_chat_only(server: OllamaServer) -> None:
    code = (
        "import sys\n"
        "from d8mesh.backends.ollama import OllamaBackend\n"
        f"assert OllamaBackend({server.url!r}).probe().is_up\n"
        "print('ollama' in sys.modules, 'httpx' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


# --- choosing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "default", "chosen"),
    [
        ("b:1", "c:1", "b:1"),
        ("plain", None, "plain:latest"),
        ("other", "c:1", "c:1"),
        (None, "c:1", "c:1"),
        ("other", "another", "a:1"),
        (None, None, "a:1"),
    ],
)
def test_the_requested_model_else_the_default_else_the_first(
    server: OllamaServer, requested: str | None, default: str | None, chosen: str
) -> None:
    server.models = ("a:1", "b:1", "c:1", "plain:latest")
    backend = OllamaBackend(server.url, default_model=default)
    assert chat(backend, model=requested).model == chosen


def test_without_a_wish_no_embedding_and_no_cloud_model_is_taken(server: OllamaServer) -> None:
    server.models = ("nomic-embed-text:latest", "gpt-oss:120b-cloud", "llama3:8b")
    backend = OllamaBackend(server.url)
    assert chat(backend).model == "llama3:8b"
    assert backend.probe().models == ("llama3:8b",)
    server.models = server.models[:2]
    seen = backend.probe()
    assert not seen.is_up
    assert (seen.url, seen.embedders) == (server.url, ("nomic-embed-text:latest",))
    assert "no models to chat with" in seen.reason
    assert "gpt-oss:120b-cloud runs in Ollama's cloud" in seen.reason
    server.models = ()
    seen = backend.probe()
    assert (seen.is_up, seen.url) == (False, server.url)  # it answers: a model can be pulled


@pytest.mark.parametrize(
    ("default", "said"),
    [
        ("absent:1b", "is not installed; qwen2.5:3b answers in its place"),
        ("absent:1b", "ollama pull absent:1b"),
        ("nomic-embed-text", "makes embeddings"),
    ],
)
def test_a_default_model_that_is_not_there_is_warned_of(
    server: OllamaServer, default: str, said: str
) -> None:
    server.models = ("nomic-embed-text:latest", "qwen2.5:3b")
    seen = OllamaBackend(server.url, default_model=default).probe()
    assert (seen.is_up, seen.default) == (True, "qwen2.5:3b")
    assert said in seen.warning
    assert OllamaBackend(server.url, default_model="QWEN2.5:3b").probe().warning == ""


def test_a_pull_does_not_change_which_model_answers_without_a_wish(server: OllamaServer) -> None:
    server.models = ("newest:1b", "nomic-embed-text:latest", "untold:1b", "oldest:1b", "older:1b")
    server.changed_at = {
        "newest:1b": "2026-03-01T10:00:00.123456789+02:00",
        "nomic-embed-text:latest": "2020-01-01T00:00:00Z",
        "oldest:1b": "2026-03-01T05:00:00.5-02:00",  # as text it is older than it is
        "older:1b": "2026-03-01T06:00:00Z",
        "untold:1b": "some day",
    }
    backend = OllamaBackend(server.url)
    assert backend.probe().default == "older:1b"
    server.models = ("pulled:1b", *server.models)
    server.changed_at["older:1b"] = "2026-09-09T00:00:00Z"  # it was brought up to date
    assert backend.probe().default == "older:1b"
    server.models = tuple(name for name in server.models if name != "older:1b")
    seen = backend.probe()
    assert (seen.default, chat(backend).model) == ("oldest:1b", "oldest:1b")
    assert OllamaBackend(server.url, default_model="untold:1b").probe().default == "untold:1b"


def test_the_wanted_default_answers_from_when_it_is_there(server: OllamaServer) -> None:
    server.models = ("other:1b",)
    backend = OllamaBackend(server.url, default_model="wanted:1b")
    assert backend.probe().default == "other:1b"
    server.models = ("wanted:1b", "other:1b")
    assert backend.probe().default == "wanted:1b"


def test_pictures_and_tools_go_to_a_model_that_can_take_them(server: OllamaServer) -> None:
    server.models = ("plain:1b", "seeing:1b", "calling:1b")
    server.capabilities = {
        "seeing:1b": ("completion", "vision"),
        "calling:1b": ("completion", "tools"),
    }
    backend = OllamaBackend(server.url)
    picture = ChatRequest(messages=({"role": "user", "content": "x", "images": ["eA=="]},))
    tools = ChatRequest(messages=({"role": "user", "content": "x"},), more={"tools": [{}]})
    assert [*picture.needs, *tools.needs] == ["vision", "tools"]
    assert run(backend, picture).model == "seeing:1b"
    assert run(backend, replace(tools, model="elsewhere:1b")).model == "calling:1b"
    with pytest.raises(InvalidTaskError, match="'plain:1b' cannot see pictures"):
        run(backend, replace(picture, model="plain:1b"))
    with pytest.raises(BackendError, match="none of the models here will do"):
        run(backend, replace(picture, more=tools.more))
    server.capabilities = None  # an older Ollama decides itself
    assert run(OllamaBackend(server.url), picture).model == "plain:1b"


# --- several addresses ------------------------------------------------------------------


def test_the_first_address_that_answers_is_used_and_kept_until_it_goes() -> None:
    with socket.socket() as taken, OllamaServer(models=("second:1b",)) as second:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        first_url = f"http://127.0.0.1:{port}"
        backend = OllamaBackend((first_url, second.url))
        assert (backend.probe().url, backend.base_url) == (second.url, second.url)
        taken.close()
        with OllamaServer(port=port, models=("first:1b",)) as first:
            assert backend.probe().url == second.url
            second.probe_behaviour = "error"
            assert backend.probe().url == first.url
            assert chat(backend).model == "first:1b"


def test_an_address_without_models_is_passed_over(server: OllamaServer) -> None:
    with OllamaServer(models=()) as empty:
        assert OllamaBackend((empty.url, server.url)).probe().url == server.url


def test_no_address_that_answers_is_told_with_all_of_them() -> None:
    seen = OllamaBackend(("http://127.0.0.1:9", "http://127.0.0.1:19")).probe()
    assert "127.0.0.1:9 or http://127.0.0.1:19 (connection refused)" in seen.reason
    assert "DEEPSEEK_BASE_URL" in seen.reason


# --- chatting -------------------------------------------------------------------------


def test_an_answer_comes_in_pieces_and_whole(server: OllamaServer) -> None:
    pieces: list[str] = []
    done = chat(OllamaBackend(server.url, temperature=0.1, max_tokens=5), pieces=pieces)
    assert done.text == "You asked: one two" == "".join(pieces)
    assert len([piece for piece in pieces if piece]) == 4
    assert done.model == "deepseek-r1:8b"
    assert done.ending.usage == Usage(prompt_tokens=11, completion_tokens=7)
    asked = server.chats[0]
    assert asked["stream"] is True
    assert asked["keep_alive"] == KEEP_ALIVE
    assert asked["options"] == {"temperature": 0.1, "num_predict": 5}


def test_the_environment_redirects_nothing_and_adds_no_key(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OLLAMA_HOST", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("OLLAMA_API_KEY", "a-secret-of-somebody")
    assert chat(OllamaBackend(server.url)).text == "You asked: one two"
    assert all("authorization" not in headers for _, headers, _ in server.requests)
    assert server.requests[-1][1]["accept-encoding"] == "identity"


def test_no_text_for_too_long_is_a_stall(server: OllamaServer) -> None:
    server.behaviour = "stall"
    with pytest.raises(BackendStalledError, match=r"nothing for 0\.3 s"):
        chat(OllamaBackend(server.url), stall_s=0.3)
    assert server.caller_left.wait(PATIENCE_S)


def test_silence_before_the_first_text_is_a_stall_later_only(
    server: OllamaServer,
) -> None:
    server.behaviour = "silent"
    started = time.monotonic()
    clocks = replace(run_of(), first_token_s=0.6, token_gap_s=0.1)
    with pytest.raises(BackendStalledError, match=r"nothing for 0\.6 s"):
        OllamaBackend(server.url).chat(QUESTION, clocks)
    assert time.monotonic() - started >= 0.6
    assert server.caller_left.wait(PATIENCE_S)


def test_a_slow_listener_is_no_stall(server: OllamaServer) -> None:
    done = OllamaBackend(server.url).chat(
        ChatRequest(messages=({"role": "user", "content": "one two"},)),
        ChatRun(
            on_piece=lambda piece: time.sleep(0.3),
            is_cancelled=lambda: False,
            deadline_s=PATIENCE_S,
            token_gap_s=0.2,
        ),
    )
    assert done.text == "You asked: one two"


def test_an_answer_begins_while_a_probe_hangs(server: OllamaServer) -> None:
    backend = OllamaBackend(server.url)
    assert backend.probe().is_up
    server.probe_behaviour = "silent"
    server.has_begun.clear()
    probing = threading.Thread(target=backend.probe)
    probing.start()
    assert server.has_begun.wait(PATIENCE_S)
    assert chat(backend).text == "You asked: one two"
    assert probing.is_alive()
    server.closing.set()
    probing.join(PATIENCE_S)


def test_what_is_placed_is_asked_though_the_lists_come_too_late(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "PROBE_S", 0.2)
    backend = OllamaBackend(server.url)
    model = backend.probe().default
    server.silent_paths.add("/api/tags")
    assert not backend.probe().is_up
    placement = Placement(service="here", model=model)
    assert backend.chat(QUESTION, replace(run_of(), placement=placement)).text


def test_who_waits_for_a_probe_takes_its_answer(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "PROBE_S", 0.5)
    server.probe_behaviour = "silent"
    backend = OllamaBackend(server.url)

    def refused() -> None:
        with pytest.raises(BackendUnavailableError):
            chat(backend)

    threads = [threading.Thread(target=refused) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(server.requests) < len(threads)


def test_slow_tokens_are_no_stall(server: OllamaServer) -> None:
    server.token_delay_s = 0.4
    assert chat(OllamaBackend(server.url), stall_s=1.5).text == "You asked: one two"


@pytest.mark.parametrize("behaviour", ["silent", "stall", "endless"])
def test_the_deadline_ends_an_answer_and_its_connection(
    server: OllamaServer, behaviour: str
) -> None:
    server.behaviour = behaviour
    with pytest.raises(BackendDeadlineError, match="not complete after"):
        chat(OllamaBackend(server.url), deadline_s=0.5)
    assert server.caller_left.wait(PATIENCE_S)


@pytest.mark.parametrize("behaviour", ["silent", "stall", "endless"])
def test_cancelling_closes_the_connection_whatever_it_is_doing(
    server: OllamaServer, behaviour: str
) -> None:
    server.behaviour = behaviour
    with pytest.raises(TaskCancelledError):
        OllamaBackend(server.url).chat(
            ChatRequest(messages=({"role": "user", "content": "x"},)),
            ChatRun(
                on_piece=lambda piece: None,
                is_cancelled=server.has_begun.is_set,
                deadline_s=PATIENCE_S,
            ),
        )
    assert server.caller_left.wait(PATIENCE_S)


def test_an_error_of_the_listener_closes_the_connection(server: OllamaServer) -> None:
    def refuse(piece: Piece) -> None:
        raise TaskCancelledError

    server.behaviour = "endless"
    with pytest.raises(TaskCancelledError):
        OllamaBackend(server.url).chat(
            ChatRequest(messages=({"role": "user", "content": "x"},)),
            ChatRun(
                on_piece=refuse,
                is_cancelled=lambda: False,
                deadline_s=PATIENCE_S,
            ),
        )
    assert server.caller_left.wait(PATIENCE_S)


def test_an_answer_without_end_fails_at_its_bound(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_in_pieces, "MAX_TEXT_BYTES", 100_000)
    server.behaviour = "endless"
    with pytest.raises(BackendTooLargeError):
        chat(OllamaBackend(server.url))
    assert server.caller_left.wait(PATIENCE_S)


def test_a_service_that_went_away_is_asked_again_when_it_is_back() -> None:
    with OllamaServer() as server:
        backend = OllamaBackend(server.url)
        assert chat(backend).text
        port = server.port
    with pytest.raises(BackendUnavailableError):
        chat(backend)
    with OllamaServer(port=port, models=("new:1b",)):
        assert chat(backend).model == "new:1b"


def test_no_thread_is_left_after_answers_and_failures(server: OllamaServer) -> None:
    backend = OllamaBackend(server.url)
    for behaviour in ("ok", "stall", "silent"):
        server.behaviour = behaviour
        try:
            chat(backend, stall_s=0.2)
        except BackendStalledError:
            assert behaviour != "ok"
    until = time.monotonic() + PATIENCE_S
    while any(thread.name == "ollama-stream" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


# --- embeddings -----------------------------------------------------------------------


def embed(backend: OllamaBackend, *texts: str, model: str = "nomic-embed-text") -> Embeddings:
    return backend.embed(EmbeddingRequest(texts=texts, model=model), run_of())


def test_each_text_has_its_vector(server: OllamaServer) -> None:
    server.models = (*server.models, "nomic-embed-text:latest")
    made = embed(OllamaBackend(server.url), "one", "two words")
    assert made.vectors == ((3.0, 1.0), (9.0, 2.0))
    assert (made.model, made.usage) == ("nomic-embed-text:latest", Usage(prompt_tokens=3))
    asked = next(body for path, _, body in server.requests if path == "/api/embed")
    assert (asked["model"], asked["input"]) == ("nomic-embed-text:latest", ["one", "two words"])


def test_a_machine_without_a_model_to_chat_with_makes_embeddings(server: OllamaServer) -> None:
    server.models = ("nomic-embed-text:latest",)
    backend = OllamaBackend(server.url)
    seen = backend.probe()
    assert (seen.is_up, seen.embedders) == (False, ("nomic-embed-text:latest",))
    assert embed(backend, "x").vectors


def test_a_model_that_makes_no_embeddings_is_refused_with_those_that_do(
    server: OllamaServer,
) -> None:
    server.models = (*server.models, "nomic-embed-text:latest")
    with pytest.raises(InvalidTaskError, match=r"makes no embeddings here.*nomic-embed-text"):
        embed(OllamaBackend(server.url), "x", model="qwen2.5:3b")


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [("error", "backend.failed"), ("not_json", "backend.answer"), ("busy", "backend.busy"),
     ("wrong_shape", "backend.answer"), ("missing", "backend.missing")],
)  # fmt: skip
def test_embeddings_that_fail_have_a_code(server: OllamaServer, behaviour: str, code: str) -> None:
    server.models = (*server.models, "nomic-embed-text:latest")
    backend = OllamaBackend(server.url)
    backend.probe()
    server.behaviour = behaviour
    with pytest.raises(BackendError) as caught:
        embed(backend, "x")
    assert caught.value.code == code


def test_embeddings_have_a_deadline(server: OllamaServer) -> None:
    server.models = (*server.models, "nomic-embed-text:latest")
    backend = OllamaBackend(server.url)
    backend.probe()
    server.behaviour = "silent"
    request = EmbeddingRequest(texts=("x",), model="nomic-embed-text")
    with pytest.raises(BackendDeadlineError):
        backend.embed(request, replace(run_of(), deadline_s=0.3))
