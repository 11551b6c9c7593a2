"""A virtual environment for each peer, made once and found again."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.progress import say
from d8mesh.errors import D8Error

#: Where the environments are.
CACHE: Final = Path.home() / ".cache" / "d8mesh-bench"
#: pip may take that long: Ray alone is 70 MB, and a Raspberry Pi's line is slow.
INSTALL_S: Final = 900.0
#: Written last: an environment without it was not finished.
MARK: Final = "d8-bench-complete"


def environment(requires: Sequence[str], cache: Path = CACHE) -> Path:
    """Return the Python of an environment that has `requires`, made now if it is not there.

    Raises:
        D8Error: pip could not install them.
    """
    wanted = "\n".join(requires)
    tag = hashlib.sha256(wanted.encode()).hexdigest()[:8]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = cache / f"{requires[0].partition('[')[0]}-{version}-{tag}"
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not (home / MARK).exists():
        say(f"installing {', '.join(requires)} into {home}")
        venv.create(home, with_pip=True, clear=True)
        _install(python, requires)
        (home / MARK).write_text(wanted, "utf-8")
    return python


def _install(python: Path, requires: Sequence[str]) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, *requires],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=INSTALL_S,
        )
    except subprocess.TimeoutExpired:
        raise D8Error(f"pip install took more than {INSTALL_S:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise D8Error(f"pip install {' '.join(requires)}: {lines[-1]}")
