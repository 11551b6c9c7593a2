"""What the stand-in answers when nothing is wrong: the facts of Ollama's API."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import IncompleteRead
from pathlib import Path

import pytest

from tests.ollama_standin import OllamaStandin
from tests.standin.calls import ask, asking, call, get, post, text_of
from tests.standin.faults import Kind
from tests.standin.machine import Model

CHAT, THINKER, EMBEDDER = "qwen2.5:3b", "deepseek-r1:8b", "nomic-embed-text"
STANDIN = Path(__file__).resolve().parent.parent / "ollama_standin.py"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with OllamaStandin(num_parallel=4) as standin:
        yield standin.url


def test_a_chat_repeats_the_question_word_by_word(url: str) -> None:
    lines = ask(url, CHAT, "one two").lines
    assert text_of(lines) == "You asked: one two"
    assert [line["message"]["content"] for line in lines] == ["You", " asked:", " one", " two", ""]
    assert (lines[-1]["prompt_eval_count"], lines[-1]["eval_count"]) == (2, 4)
    assert datetime.fromisoformat(lines[0]["created_at"]).tzinfo is not None


def test_as_many_words_as_wished_come_and_no_more_than_allowed(url: str) -> None:
    lines = ask(url, CHAT, "say 30 words").lines
    assert (len(lines), lines[-1]["done_reason"]) == (31, "stop")
    lines = ask(url, CHAT, "say 30 words", options={"num_predict": 5}).lines
    assert (len(lines), lines[-1]["done_reason"]) == (6, "length")


def test_the_model_is_echoed_as_it_was_spelled(url: str) -> None:
    for name in (EMBEDDER, f"library/{EMBEDDER}:latest", EMBEDDER.upper()):
        assert post(url, "/api/embed", {"model": name, "input": "x"}).json["model"] == name


def test_a_thinking_model_thinks_before_it_speaks_unless_told_not_to(url: str) -> None:
    lines = ask(url, THINKER, "hello").lines
    kinds = ["thinking" in line["message"] for line in lines[:-1]]
    assert kinds == sorted(kinds, reverse=True)
    assert any(kinds)
    assert not any(
        "thinking" in line["message"] for line in ask(url, THINKER, "x", think=False).lines
    )
    refused = ask(url, CHAT, "hello", think=True)
    assert (refused.status, refused.json) == (400, {"error": f'"{CHAT}" does not support thinking'})


def test_a_tool_that_the_question_names_is_called_with_an_object(url: str) -> None:
    lines = ask(url, CHAT, "use weather", tools=[WEATHER]).lines
    (called,) = [each for line in lines for each in line["message"].get("tool_calls", ())]
    assert called["function"] == {"index": 0, "name": "weather", "arguments": {"city": "a"}}
    assert lines[-1]["done_reason"] == "stop"
    refused = post(url, "/api/generate", {"model": EMBEDDER, "prompt": "x"})
    assert refused.json["error"] == f'"{EMBEDDER}" does not support generate'


def test_a_schema_is_kept_to(url: str) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "kind": {"enum": ["a", "b"]}},
    }
    answered = ask(url, CHAT, "hello", format=schema, stream=False).json
    assert json.loads(answered["message"]["content"]) == {"n": 1, "kind": "a"}
    assert json.loads(text_of(ask(url, CHAT, "hello", format="json").lines))
    assert ask(url, CHAT, "hello", format="xml").status == 500


def test_log_probabilities_come_with_each_token(url: str) -> None:
    lines = ask(url, CHAT, "hi", logprobs=True, top_logprobs=2).lines
    assert [each["token"] for line in lines for each in line.get("logprobs", ())] == [
        *("You", " asked:", " hi"),
    ]
    assert len(lines[0]["logprobs"][0]["top_logprobs"]) == 2
    assert ask(url, CHAT, "hi", top_logprobs=21).status == 400


def test_generate_answers_in_its_own_form(url: str) -> None:
    lines = post(url, "/api/generate", {"model": CHAT, "prompt": "hi"}).lines
    assert "".join(line["response"] for line in lines) == "You asked: hi"
    assert lines[-1]["context"]
    assert (
        "context"
        not in post(url, "/api/generate", {"model": CHAT, "prompt": "x", "raw": True}).lines[-1]
    )
    refused = post(url, "/api/generate", {"model": CHAT, "prompt": "x", "raw": True, "system": "y"})
    assert refused.json["error"] == "raw mode does not support template, system, or context"
    refused = post(url, "/api/generate", {"model": CHAT, "prompt": "x", "suffix": "y"})
    assert refused.json["error"] == f'"{CHAT}" does not support insert'


def test_vectors_have_length_1_and_stand_in_the_order_of_their_texts(url: str) -> None:
    told = post(url, "/api/embed", {"model": EMBEDDER, "input": ["a b", "c"]}).json
    again = post(url, "/api/embed", {"model": EMBEDDER, "input": ["c", "a b"]}).json
    assert told["embeddings"] == again["embeddings"][::-1]
    assert sum(x * x for x in told["embeddings"][0]) == pytest.approx(1)
    assert told["prompt_eval_count"] == 3
    assert post(url, "/api/embed", {"model": EMBEDDER, "input": ""}).json["embeddings"] == []
    assert post(url, "/api/embed", {"model": EMBEDDER, "input": 3}).json == {
        "error": "invalid input type"
    }
    assert post(url, "/api/embeddings", {"model": EMBEDDER, "prompt": "c"}).json == {
        "embedding": told["embeddings"][1]
    }


def test_an_overlong_text_is_an_error_only_where_it_may_not_be_cut(url: str) -> None:
    body = {"model": EMBEDDER, "input": "x " * 5000}
    assert post(url, "/api/embed", body).status == 200
    refused = post(url, "/api/embed", body | {"truncate": False})
    assert refused.json == {"error": "the input length exceeds the context length"}


def test_a_chat_model_is_refused_to_an_embedder_and_tools_to_who_has_none() -> None:
    plain = Model(name="plain:1b", can=("completion",))
    with OllamaStandin(models=[plain]) as standin:
        refused = ask(standin.url, "plain:1b", "hi", tools=[WEATHER])
    assert refused.json["error"] == "registry.ollama.ai/library/plain:1b does not support tools"


def test_two_names_of_one_model_share_its_digest_and_its_memory() -> None:
    model = Model(name="a:1b", aliases=("b:latest",))
    with OllamaStandin(models=[model]) as standin:
        rows = get(standin.url, "/api/tags").json["models"]
        assert {row["name"] for row in rows} == {"a:1b", "b:latest"}
        assert len({row["digest"] for row in rows}) == 1
        for name in ("a:1b", "b"):
            ask(standin.url, name, "hi")
        assert standin.ollama.machine.loads == {"a:1b": 1}


def test_a_pull_tells_its_progress_and_a_delete_takes_the_model_away() -> None:
    with OllamaStandin(library=["new"], pull_s=0) as standin:
        lines = post(standin.url, "/api/pull", {"model": "new"}).lines
        assert lines[0] == {"status": "pulling manifest"}
        assert lines[-1] == {"status": "success"}
        seen = [line["completed"] for line in lines if "completed" in line]
        assert seen == sorted(seen)
        assert seen[-1] == next(line["total"] for line in lines if "total" in line)
        assert ask(standin.url, "new", "hi").status == 200
        assert post(standin.url, "/api/pull", {"model": "new", "stream": False}).json == {
            "status": "success"
        }
        assert "error" in post(standin.url, "/api/pull", {"model": "none"}).lines[-1]
        post(standin.url, "/api/copy", {"source": "new", "destination": "other"})
        assert ask(standin.url, "other", "hi").status == 200
        for name in ("new", "other"):
            assert call(standin.url, "DELETE", "/api/delete", {"model": name}).body == b""
        assert ask(standin.url, "new", "hi").status == 404
        assert standin.loaded == []


def test_a_pull_takes_as_long_as_its_size_at_its_rate_and_whoever_leaves_gets_nothing() -> None:
    large, small = Model(name="large", size=10**12), Model(name="small", size=3 * 10**6)
    with OllamaStandin(library=[large, small], pull_s=0, pull_bytes_per_s=10**7) as standin:
        began = time.monotonic()
        lines = post(standin.url, "/api/pull", {"model": "small"}).lines
        assert time.monotonic() - began >= 0.3
        assert lines[-2:] == [{"status": "writing manifest"}, {"status": "success"}]
        assert {line["total"] for line in lines if "total" in line} == {3 * 10**6}
        with asking(standin.url, "POST", "/api/pull", {"model": "large"}) as response:
            assert json.loads(response.readline()) == {"status": "pulling manifest"}
        assert ask(standin.url, "large", "hi").status == 404


def test_as_a_program_it_has_embedders_and_sizes_and_refuses_to_pull_what_nobody_knows() -> None:
    options = ["--port", "0", "--models", "a:1b=0.5", "vec", "--embedders", "vec", "new"]
    options += ["--library", "new=0.001", "--with-parent"]
    program = [sys.executable, str(STANDIN), *options]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            url = child.stdout.readline().split(" at ")[1].partition(";")[0]
            lines = post(url, "/api/pull", {"model": "nobody:7b"}).lines
            assert lines[-1] == {"error": "pull model manifest: file does not exist"}
            assert post(url, "/api/pull", {"model": "new"}).lines[-1] == {"status": "success"}
            rows = {row["name"]: row for row in get(url, "/api/tags").json["models"]}
            sizes = {name: row["size"] for name, row in rows.items()}
            assert sizes == {"a:1b": 5 * 10**8, "vec:latest": 2 * 10**9, "new:latest": 10**6}
            for name in ("vec", "new"):
                assert ask(url, name, "hi").status == 400
            assert ask(url, "a:1b", "hi").status == 200
        finally:
            child.stdin.close()
            child.wait(20)


# --- what is told of a model ------------------------------------------------------------


def test_show_tells_all_that_ollama_tells(url: str) -> None:
    told = post(url, "/api/show", {"name": CHAT}).json
    texts = ("license", "modelfile", "parameters", "template", "system", "modified_at")
    assert all(isinstance(told[name], str) and told[name] for name in texts)
    assert told["parameters"].splitlines()[0].split() == ["stop", '"<|im_start|>"']
    assert told["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "3.3B",
        "quantization_level": "Q4_K_M",
        "context_length": 131_072,
        "embedding_length": 2048,
    }
    info = told["model_info"]
    assert (info["general.architecture"], info["llama.context_length"]) == ("llama", 131_072)
    assert info["tokenizer.ggml.tokens"] is None
    assert told["capabilities"] == ["completion", "tools"]
    assert "tensors" not in told


def test_only_a_verbose_show_tells_tokens_and_tensors(url: str) -> None:
    told = post(url, "/api/show", {"model": CHAT, "verbose": True}).json
    assert told["model_info"]["tokenizer.ggml.tokens"]
    assert {"name", "type", "shape"} == set(told["tensors"][0])


def test_a_model_that_fills_gaps_or_sees_pictures_says_so_in_show() -> None:
    model = Model(name="v", can=("completion", "insert", "vision"))
    with OllamaStandin(models=[model]) as standin:
        told = post(standin.url, "/api/show", {"model": "v"}).json
    assert ".Suffix" in told["template"]
    assert told["projector_info"]["clip.has_vision_encoder"] is True


def test_ps_tells_what_is_in_memory_and_for_how_long() -> None:
    model = Model(name="a:1b", size=1000, size_vram=400)
    with OllamaStandin(models=[model], loaded=["a:1b"], keep_alive_s=60.0) as standin:
        (row,) = get(standin.url, "/api/ps").json["models"]
        (listed,) = get(standin.url, "/api/tags").json["models"]
    left_s = (datetime.fromisoformat(row["expires_at"]) - datetime.now(UTC)).total_seconds()
    assert 30 < left_s <= 60
    assert (row["size"], row["size_vram"], row["context_length"]) == (1000, 400, 4096)
    assert {name: row[name] for name in ("name", "model", "digest", "details")} == {
        name: listed[name] for name in ("name", "model", "digest", "details")
    }
    assert "modified_at" not in row


# --- connections ------------------------------------------------------------------------


def test_a_connection_that_ends_is_remembered_with_its_time_and_who_ended_it() -> None:
    with OllamaStandin(tokens_per_s=20.0) as standin:
        ask(standin.url, CHAT, "hello")
        standin.wait_until(lambda: len(standin.counters.closed) == 1)
        body = {"model": CHAT, "messages": [{"role": "user", "content": "say 99 words"}]}
        with asking(standin.url, "POST", "/api/chat", body) as response:
            response.readline()
            left = time.monotonic()
            response.close()
        standin.wait_until(lambda: len(standin.counters.closed) == 2)
        standin.fault(Kind.CUT)
        with pytest.raises(IncompleteRead):
            ask(standin.url, CHAT, "hello")
        standin.wait_until(lambda: len(standin.counters.closed) == 3)
        whole, unfinished, cut = standin.counters.closed
    assert (whole.path, whole.is_answered, whole.by_client) == ("/api/chat", True, True)
    assert (unfinished.is_answered, unfinished.by_client) == (False, True)
    assert left <= unfinished.at < left + 1
    assert unfinished.opened < unfinished.at
    assert cut.by_client is False
