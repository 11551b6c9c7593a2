"""A program called ``ollama`` for a PATH of the test's own: ``ollama serve`` serves the stand-in.

It listens on OLLAMA_HOST, as the real one does. What else it shall do stands in variables:
``FAKE_OLLAMA_FAILS`` (it says that and ends), ``FAKE_OLLAMA_MODELS`` (installed, by commas).
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def put_on_path(folder: Path) -> str:
    """Put the program into `folder`; return the PATH that has it first."""
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        program = folder / "ollama.cmd"
        program.write_text(f'@"{sys.executable}" "{__file__}" %*\n', "utf-8")
    else:
        program = folder / "ollama"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n', "utf-8")
        program.chmod(0o755)
    return os.pathsep.join([str(folder), os.environ.get("PATH", "")])


def _serve() -> int:
    if why := os.environ.get("FAKE_OLLAMA_FAILS"):
        print(why, file=sys.stderr, flush=True)
        return 1
    sys.path.insert(0, str(ROOT))
    from tests.ollama_standin import OllamaStandin

    models = list(filter(None, os.environ.get("FAKE_OLLAMA_MODELS", "qwen2.5:3b").split(",")))
    port = int(os.environ["OLLAMA_HOST"].rpartition(":")[2])
    with OllamaStandin(port=port, models=models):
        print(f"Listening on {os.environ['OLLAMA_HOST']}", flush=True)
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(_serve() if sys.argv[1:] == ["serve"] else 2)
