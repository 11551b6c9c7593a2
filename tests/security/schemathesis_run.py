"""Tries all doors of a running mesh against its own ``/openapi.json``.

By hand, for longer: ``python -m tests.security.schemathesis_run --max-examples 500 [--seed N]``;
what follows is schemathesis's own. Each failure is shown with the request that makes it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.doors.llm_mesh import CHAT, machine
from tests.security.abuse import Abused, abused_mesh

ROOT: Final = Path(__file__).resolve().parent.parent.parent
CONFIG: Final = Path(__file__).with_name("schemathesis.toml")
#: All checks but one: that what the document takes is taken, for models and tasks must be there.
ARGUMENTS: Final = (
    "--phases=coverage,fuzzing",
    "--checks=all",
    "--exclude-checks=positive_data_acceptance",
    "--continue-on-failure",
    "--request-timeout=30",
    "--no-color",
    "--warnings=off",
)


def run(abused: Abused, *more: str) -> subprocess.CompletedProcess[str]:
    """Run schemathesis; return what it said."""
    task = abused.http.post("/api/tasks/submit", {"type": "nobody", "data": {}}).json["task_id"]
    known = {
        "D8_KNOWN": json.dumps({"task_id": task, "model": CHAT}),
        "SCHEMATHESIS_HOOKS": "tests.security.schemathesis_hooks",
    }
    url = f"{abused.mesh.url}/openapi.json"
    command = [sys.executable, "-m", "schemathesis.cli", f"--config-file={CONFIG}", "run", url]
    with tempfile.TemporaryDirectory() as scratch:  # it leaves a folder where it is run
        return subprocess.run(
            [*command, *ARGUMENTS, *more],
            cwd=scratch,
            env={**os.environ, **known, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"},
            capture_output=True,
            text=True,
        )


def main(arguments: Sequence[str]) -> int:
    """Run it against a mesh of its own; return its exit code."""
    os.environ |= {"D8_NO_ENV_FILE": "1", "D8_MODELS_DIR": "none", "D8_INTERFACES": "127.0.0.1"}
    with abused_mesh(machine()) as abused:
        done = run(abused, *arguments)
        print(done.stdout, done.stderr)
        print("refused:", dict(abused.rejected()))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
