"""Every example of docs/COOKBOOK.md, run as it stands against a mesh (but for its address)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from bench.peers.environment import environment
from d8mesh.errors import D8Error
from tests.doors.llm_mesh import LlmMesh, llm_mesh, machine
from tests.standin.machine import Model

ROOT: Final = Path(__file__).resolve().parent.parent
TEXT: Final = (ROOT / "docs" / "COOKBOOK.md").read_text("utf-8")
#: Where the orchestrator is in the doc.
ADDRESS: Final = "http://orchestrator:7001"
#: The models that the doc names.
CHAT: Final = "llama3.2:3b"
FILLER: Final = "qwen2.5-coder:1.5b"
EMBEDDER: Final = "nomic-embed-text"
MODELS: Final = (
    Model(name=CHAT),
    Model(name=FILLER, can=("completion", "insert")),
    Model(name=f"{EMBEDDER}:latest", can=("embedding",), family="nomic-bert"),
)
#: What the examples of a section need; those of others run in the environment of the tests.
REQUIRES: Final = {
    "LangChain": ("langchain-ollama", "langchain-openai", "langchain-anthropic"),
    "LiteLLM": ("litellm", "PyYAML"),
}
#: An example may take so long: LiteLLM is imported for ten seconds on a small machine.
EXAMPLE_S: Final = 120
#: Nothing is fetched, nobody is told.
QUIET: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "LANGSMITH_TRACING": "false",
}
CONTINUE_HEADERS: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Example:
    """One block of the doc."""

    section: str
    line: int
    kind: str
    code: str

    @property
    def place(self) -> str:
        return f"line {self.line}"


def examples() -> list[Example]:
    """Return all blocks, in order."""
    found = []
    for block in re.finditer(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        titles = re.findall(r"^## (.+)$", TEXT[: block.start()], re.MULTILINE)
        line = TEXT.count("\n", 0, block.start()) + 1
        found.append(Example(titles[-1], line, block[1], block[2]))
    return found


def of(kind: str, *, is_slow: bool = False) -> pytest.MarkDecorator:
    """Return the parameters of a test of all examples of a kind."""
    chosen = [
        each for each in examples() if each.kind == kind and (each.section in REQUIRES) == is_slow
    ]
    assert chosen
    return pytest.mark.parametrize("example", chosen, ids=[each.place for each in chosen])


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    with llm_mesh(machine(models=MODELS, loaded=[CHAT])) as made:
        yield made


def run(mesh: LlmMesh, command: list[str], code: str, folder: Path) -> str:
    """Run an example, which must end well; return what it prints."""
    paths = {"HOME": str(folder), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [*command, code.replace(ADDRESS, mesh.url)],
        cwd=folder,
        env={**os.environ, **paths, **QUIET},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=EXAMPLE_S,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def asked(mesh: LlmMesh) -> int:
    """Return how often the machine was asked for something."""
    return len(mesh.standins[0].counters.prompts)


@pytest.mark.timeout(EXAMPLE_S + 60)
@of("python")
def test_an_example_in_python_asks_the_mesh_and_prints_the_answer(
    mesh: LlmMesh, example: Example, tmp_path: Path
) -> None:
    before = asked(mesh)
    said = run(mesh, [sys.executable, "-W", "error", "-c"], example.code, tmp_path)
    assert "You asked: " in said
    assert asked(mesh) > before


@pytest.mark.slow
@pytest.mark.timeout(1200)
@of("python", is_slow=True)
def test_an_example_of_a_framework_asks_the_mesh_and_prints_the_answer(
    mesh: LlmMesh, example: Example, tmp_path: Path
) -> None:
    before = asked(mesh)
    said = run(mesh, [str(python_with(example.section)), "-c"], example.code, tmp_path)
    assert "You asked: " in said or "tool_call" in said
    assert asked(mesh) > before


def python_with(section: str) -> Path:
    """Return a Python that has what the examples of a section need; made at first need."""
    try:
        return environment(REQUIRES[section])
    except D8Error as error:
        pytest.skip(f"not installable here: {error}")


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
@pytest.mark.skipif(sys.platform == "win32", reason="written for a POSIX shell")
@of("bash")
def test_an_example_for_the_shell_asks_the_mesh_and_prints_the_answer(
    mesh: LlmMesh, example: Example, tmp_path: Path
) -> None:
    before = asked(mesh)
    said = run(mesh, ["sh", "-ec"], example.code, tmp_path)
    assert '"role":"assistant"' in said.replace(" ", "")
    assert asked(mesh) > before


def test_the_same_key_gets_the_same_answer_and_asks_once(mesh: LlmMesh, tmp_path: Path) -> None:
    (example,) = [each for each in examples() if "Idempotency-Key" in each.code]
    code = example.code.replace("minutes-of-monday", "minutes-of-tuesday")
    before = asked(mesh)
    first, second = run(mesh, [sys.executable, "-c"], code, tmp_path).splitlines()
    assert first == second
    assert asked(mesh) == before + 1


# -------------------------------------------------------------------------------- settings


def settings_of(section: str) -> Any:
    """Return what the file of a section holds."""
    (found,) = [each for each in examples() if (each.section, each.kind) == (section, "yaml")]
    return yaml.safe_load(found.code)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_litellm_routes_to_the_mesh_as_its_file_says(mesh: LlmMesh, tmp_path: Path) -> None:
    (file,) = [each for each in examples() if (each.section, each.kind) == ("LiteLLM", "yaml")]
    (tmp_path / "config.yaml").write_text(file.code.replace(ADDRESS, mesh.url), "utf-8")
    code = f"""
import yaml
from litellm import Router
told = yaml.safe_load(open("config.yaml"))
router = Router(model_list=told["model_list"], **told["router_settings"])
asked = [{{"role": "user", "content": "Hi"}}]
print(router.completion(model={CHAT!r}, messages=asked).choices[0].message.content)
print(len(router.embedding(model={EMBEDDER!r}, input=["a", "b"]).data))
"""
    said = run(mesh, [str(python_with("LiteLLM")), "-c"], code, tmp_path)
    assert said.splitlines()[-2:] == ["You asked: Hi", "2"]


def test_continue_is_told_models_of_the_mesh() -> None:
    models = settings_of("Continue")["models"]
    assert [each["model"] for each in models] == [CHAT, FILLER, EMBEDDER]
    assert {each["provider"] for each in models} == {"ollama"}
    assert {each["apiBase"] for each in models} == {ADDRESS}


def test_continue_looks_at_a_model_by_its_old_name(mesh: LlmMesh) -> None:
    told = mesh.post("/api/show", {"name": FILLER}, headers=CONTINUE_HEADERS).json
    assert isinstance(told["template"], str)
    for line in (told.get("parameters") or "").splitlines():
        assert re.match(r'^(\S+)\s+((?:".*")|\S+)$', line)


def test_continue_chats_with_a_context_of_its_own_which_loads_nothing_anew(mesh: LlmMesh) -> None:
    reloads = mesh.standins[0].reloads
    body = {
        "model": CHAT,
        "messages": [{"role": "user", "content": "say 4 words"}],
        "options": {"num_predict": 4096, "stop": ["<|eot_id|>"], "num_ctx": 8191},
        "keep_alive": 1800,
        "stream": True,
    }
    told = mesh.post("/api/chat", body, headers=CONTINUE_HEADERS)
    lines = [json.loads(line) for line in told.body.splitlines()]
    assert "".join(each["message"]["content"] for each in lines) == "w0 w1 w2 w3"
    assert [each["done"] for each in lines].count(True) == 1
    assert "options.num_ctx" in told.headers["x-d8-ignored"]
    assert mesh.standins[0].reloads == reloads


def test_continue_calls_tools_without_a_stream(mesh: LlmMesh) -> None:
    function = {"name": "read_file", "description": "Reads.", "parameters": {"type": "object"}}
    body = {
        "model": CHAT,
        "messages": [{"role": "user", "content": "Please read_file"}],
        "options": {"num_ctx": 8191},
        "keep_alive": 1800,
        "tools": [{"type": "function", "function": function}],
        "stream": False,
    }
    message = mesh.post("/api/chat", body, headers=CONTINUE_HEADERS).json["message"]
    assert message["role"] == "assistant"
    assert message["tool_calls"][0]["function"]["name"] == "read_file"
    assert isinstance(message["tool_calls"][0]["function"]["arguments"], dict)


@pytest.mark.parametrize(
    "more", [{"suffix": "return n"}, {"raw": True}, {"raw": False, "suffix": None}]
)
def test_continue_completes_with_a_suffix_or_a_raw_prompt(
    mesh: LlmMesh, more: dict[str, Any]
) -> None:
    body = {
        "model": FILLER,
        "prompt": "def f(n):",
        "options": {"num_predict": 64, "num_ctx": 8191, "temperature": 0.01},
        "keep_alive": 1800,
        "stream": True,
        **more,
    }
    told = mesh.post("/api/generate", body, headers=CONTINUE_HEADERS)
    lines = [json.loads(line) for line in told.body.splitlines()]
    assert "".join(each["response"] for each in lines)
    assert lines[-1]["done"] is True


def test_continue_makes_vectors(mesh: LlmMesh) -> None:
    body = {"model": EMBEDDER, "input": ["one", "another"]}
    told = mesh.post("/api/embed", body, headers=CONTINUE_HEADERS).json
    assert len(told["embeddings"]) == 2
