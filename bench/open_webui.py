"""Open WebUI, as its package on PyPI is, at the doors of a mesh: what a person sees of it.

Two machines with different models; Open WebUI knows nothing but ``OLLAMA_BASE_URL``. A headless
browser looks at the models that it lists, and watches an answer grow (`inside.browse_open_webui`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench.findings import Findings
from bench.llm import pool
from bench.peers import servers
from bench.peers.environment import environment
from bench.plan import Plan
from bench.processes import kill_tree
from bench.progress import say
from bench.raw_loop import HOME
from bench.standins import Machine
from d8mesh.apps.demo import free_ports
from d8mesh.errors import D8Error

#: 4.3 GB with all that it brings.
REQUIRES: Final = ("open-webui", "playwright")
BROWSER: Final = "chromium"
#: Where the picture goes, and what is kept of it in the repository.
PICTURE: Final = HOME / "docs" / "pictures" / "open-webui.png"
MACHINES: Final = (
    Machine(models=("llama3.2:3b", "qwen2.5:3b"), loaded=("qwen2.5:3b",)),
    Machine(models=("qwen2.5:3b", "gemma3:4b"), loaded=("qwen2.5:3b",)),
)
MODELS: Final = frozenset({"llama3.2:3b", "qwen2.5:3b", "gemma3:4b"})
CHOSEN: Final = "qwen2.5:3b"
WORDS: Final = 80
#: Its first start makes a database; a browser needs half of that.
START_S: Final = 180.0
BROWSE_S: Final = 240.0
LOOK_S: Final = 0.5

SEEN: Final = "Open WebUI, seen in a headless browser"


def measure(plan: Plan) -> Findings:
    """Look once each round."""
    servers.provide(BROWSER, BROWSER)
    python = environment(REQUIRES)
    found = Findings()
    found.note(
        "Open WebUI from PyPI, in an environment of its own, OLLAMA_BASE_URL at the orchestrator; "
        f"two stand-in machines, {WORDS} words at 40 tokens/s. Times are those of a person who "
        "looks at the page."
    )
    for turn in range(plan.rounds):
        say(f"open_webui: round {turn + 1}")
        with pool(MACHINES) as running, _open_webui(python, running.url) as url:
            seen = _browse(python, url)
        _check(seen)
        table = found.table(SEEN, "")
        table.add("models listed", "count", len(seen["models"]))
        table.add("page shown", "s", seen["page_s"])
        table.add("first words of the answer", "s", seen["first_s"])
        table.add("whole answer", "s", seen["whole_s"])
        table.add("steps in which it was seen to grow", "count", seen["steps"])
    say(f"open_webui: the picture is {PICTURE.relative_to(HOME)}")
    return found


@contextlib.contextmanager
def _open_webui(python: Path, door: str) -> Iterator[str]:
    """Run Open WebUI with nothing set but where its Ollama is; yield its address."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="d8-owui-", ignore_cleanup_errors=True) as folder:
        settings = {
            "HOME": folder,
            "DATA_DIR": folder,
            "OLLAMA_BASE_URL": door,
            "WEBUI_AUTH": "False",  # no account to make first
            "ENABLE_OPENAI_API": "False",
            # nothing is fetched: its own embedding model would be
            "OFFLINE_MODE": "true",
            "RAG_EMBEDDING_ENGINE": "ollama",
            "ANONYMIZED_TELEMETRY": "False",
        }
        program = python.with_name("open-webui")
        log = Path(folder) / "log.txt"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(program), "serve", "--host", "127.0.0.1", "--port", str(port)],
                cwd=folder,
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _await(process, url, log)
            yield url
        finally:
            kill_tree(process.pid)


def _await(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url + "/health", timeout=5):
            return
        time.sleep(LOOK_S)
    lines = log.read_text("utf-8", "replace").splitlines()[-3:]
    raise D8Error(f"Open WebUI did not start: {' / '.join(lines)}")


def _browse(python: Path, url: str) -> dict[str, Any]:
    PICTURE.parent.mkdir(exist_ok=True)
    told = {
        "url": url,
        "browser": str(shutil.which(BROWSER)),
        "picture": str(PICTURE),
        "question": f"say {WORDS} words",
        "model": CHOSEN,
    }
    done = subprocess.run(
        [str(python), "-m", "bench.inside.browse_open_webui", json.dumps(told)],
        cwd=HOME,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=BROWSE_S,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it ended without a word"]
        raise D8Error(f"the browser: {lines[-1]}")
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def _check(seen: dict[str, Any]) -> None:
    """Refuse what is no chat: all models once, the answer whole, and seen to grow."""
    listed = seen["models"]  # the model that is built in may be among them
    if len(set(listed)) < len(listed) or not set(listed) >= MODELS:
        raise D8Error(f"models listed: {listed}, expected each once of {sorted(MODELS)}")
    words = seen["text"].split()
    if len(words) != WORDS:
        raise D8Error(f"the answer has {len(words)} words, expected {WORDS}: {seen['text'][-80:]}")
    if seen["steps"] < WORDS // 10:
        raise D8Error(f"the answer was seen to grow {seen['steps']} times: it was not streamed")
