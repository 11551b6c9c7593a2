"""Start d8mesh on a machine that has nothing but Python.

    python3 start_d8.py                 the menu
    python3 start_d8.py COMMAND …       one command; --help lists them

Makes a virtual environment (``.venv`` beside this file, or the folder named by
``D8_VENV``), installs the project there once, again when ``pyproject.toml`` changed, and
goes on as `d8mesh.cli` in it. Uses the standard library only, and has to be readable by
Python 3.8, so that an old one can say that it is too old.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Iterator, NoReturn, Sequence

MINIMUM = (3, 11)
#: Newer Pythons that are looked for on PATH when this one is too old.
CANDIDATES = ("python3.14", "python3.13", "python3.12", "python3.11", "python3", "python")
ROOT = Path(__file__).resolve().parent
PYPROJECT = ROOT / "pyproject.toml"
#: What a command needs beside the project itself: extras of pyproject.toml.
EXTRAS_OF_COMMANDS = {"test": ("test",), "bench": ("bench",)}
#: An install of another start may take this long on a slow card and a slow line.
LOCK_WAIT_S = 1800.0
LOCK_POLL_S = 0.2
PROBE_TIMEOUT_S = 30.0
#: Settings of pip and Python that would send packages elsewhere than into the environment.
MISLEADING = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONPATH")
#: Settings that make one Python load the library of another.
CONFUSING = ("PYTHONHOME", "__PYVENV_LAUNCHER__")
NETWORK_SIGNS = (
    "NewConnectionError",
    "ConnectTimeout",
    "ReadTimeout",
    "Temporary failure in name resolution",
    "Name or service not known",
    "getaddrinfo failed",
    "nodename nor servname",
    "Network is unreachable",
    "Connection refused",
    "Connection reset",
    "ProxyError",
    "SSLError",
    "No matching distribution found",
)


class SetupError(Exception):
    """Something a person has to change first; the message says what."""


def main(arguments: Sequence[str]) -> int:
    """Make sure that everything is installed, then run the command; return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a path must never break a message
            stream.reconfigure(errors="replace")
    try:
        if sys.version_info[:2] < MINIMUM:
            return _run(_newer_python(), arguments)
        if not os.environ.get("D8_NO_INSTALL"):
            if not PYPROJECT.exists():
                raise SetupError(f"{PYPROJECT} is missing: start d8mesh from its whole folder")
            venv = ROOT / Path(os.environ.get("D8_VENV") or ".venv").expanduser()
            extras = _extras_for(arguments)
            if not _is_ready_here(venv, extras):
                python = _ensure_installed(venv, extras)
                if not _is_running_in(venv):
                    return _run(python, arguments)
    except SetupError as error:
        print(f"start_d8: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    sys.path.insert(0, str(ROOT))
    from d8mesh.cli import main as cli_main

    return cli_main(list(arguments))


def _extras_for(arguments: Sequence[str]) -> Sequence[str]:
    """Return the extras that a command needs; nothing is installed to tell what `bench` takes."""
    command = arguments[0] if arguments else ""
    if command == "bench" and {"-h", "--help"} & set(arguments):
        return ()
    return EXTRAS_OF_COMMANDS.get(command, ())


# --- which Python ---------------------------------------------------------------------


def _newer_python() -> Path:
    """Find a Python on PATH that is new enough."""
    for name in CANDIDATES:
        found = shutil.which(name)
        if found and _version_of(Path(found)) >= MINIMUM:
            return Path(found)
    raise SetupError(
        "this is Python {}.{}, and d8mesh needs Python {}.{} or newer: install one (Debian, "
        "Raspberry Pi OS: sudo apt-get install python3 python3-venv; others: python.org) and "
        "start it again with that".format(*sys.version_info[:2], *MINIMUM)
    )


def _refuse_32_bit_arm() -> None:
    """Say so before pip tries to compile what nobody has built for 32-bit ARM.

    Installed already (by hand, with a compiler) it may run: only an install is refused.
    """
    machine = platform.machine().lower()
    is_arm = machine.startswith(("arm", "aarch64"))
    if not is_arm or struct.calcsize("P") > 4:  # the kernel may be 64-bit under 32-bit programs
        return
    seen = f"this system is a 32-bit one ({machine})"
    if machine in ("aarch64", "arm64", "armv8l"):
        seen = f"this processor is a 64-bit one ({machine}), but the system on it is 32-bit"
    elif machine.startswith("armv6"):
        seen = f"this processor is a 32-bit one ({machine}: Raspberry Pi 1 or Zero)"
    raise SetupError(
        seen + ", and two packages that d8mesh needs are not made for 32-bit ARM: 64-bit Raspberry "
        "Pi OS is needed (Raspberry Pi Imager: Raspberry Pi OS (64-bit); it runs on Pi 3, 4, 5 and "
        "Zero 2 W)"
    )


def _version_of(python: Path) -> tuple[int, ...]:
    """Ask `python` for its (major, minor); () if it does not run."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run(
            [str(python), "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_TIMEOUT_S,
            env=_without(MISLEADING + CONFUSING),
        )
        return tuple(int(part) for part in done.stdout.split())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ()


def _run(python: Path, arguments: Sequence[str]) -> int:
    """Run this file again with `python`: in this process's place where that is possible."""
    command = [str(python), str(ROOT / "start_d8.py"), *arguments]
    environment = _without(CONFUSING)
    environment.setdefault("PYTHONUTF8", "1")
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execve(command[0], command, environment)
    return _run_beside(command, environment)


def _run_beside(command: list[str], environment: dict[str, str]) -> int:
    """Run `command` as a child: Ctrl-C reaches it by the console, its exit code is ours."""
    for name in ("SIGINT", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    return subprocess.Popen(command, env=environment).wait()


def _without(names: Sequence[str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in names}


# --- is it installed already? -----------------------------------------------------------


def _is_running_in(venv: Path) -> bool:
    with contextlib.suppress(OSError):
        return Path(sys.prefix).samefile(venv)
    return False


def _is_ready_here(venv: Path, extras: Sequence[str]) -> bool:
    """Tell whether this very Python has the project (this folder of it) and its needs."""
    if _is_running_in(venv):
        return _stamped_extras(venv) >= {"", *extras}
    if os.environ.get("D8_VENV"):
        return False
    from importlib import metadata

    elsewhere = [entry for entry in sys.path if entry and Path(entry) != ROOT]
    for found in metadata.distributions(name="d8mesh", path=elsewhere):
        origin = json.loads(found.read_text("direct_url.json") or "{}").get("url")
        return origin == ROOT.as_uri() and _are_needs_met(extras)
    return False


def _are_needs_met(extras: Sequence[str]) -> bool:
    from importlib import metadata

    import tomllib

    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    needs = list(project["dependencies"])
    for extra in extras:
        needs += project["optional-dependencies"][extra]
    for need in needs:
        name, _, floor = need.partition(">=")
        try:
            version = metadata.version(name.partition("[")[0])
        except metadata.PackageNotFoundError:
            return False
        if _numbers(version) < _numbers(floor):
            return False
    return True


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _stamp(venv: Path) -> str:
    """Return what an install depends on: the project file, its folder, and the Python."""
    seen = hashlib.sha256(PYPROJECT.read_bytes())
    seen.update(os.fsencode(ROOT))
    seen.update(os.fsencode(os.path.realpath(_python_of(venv))))
    return seen.hexdigest()


def _stamped_extras(venv: Path) -> set[str]:
    """Return the extras installed in `venv`, with "" for the project; empty if none hold."""
    try:
        rows = (venv / "d8-installed").read_text("utf-8").split("\n")
        is_same = rows[0] == _stamp(venv) and _is_alive(venv)
    except OSError:
        return set()
    return {"", *rows[1:]} if is_same else set()


def _is_alive(venv: Path) -> bool:
    """Tell whether the Python that `venv` was made from is still there."""
    if not _python_of(venv).exists():
        return False
    rows = (venv / "pyvenv.cfg").read_text("utf-8").splitlines()
    homes = [row.partition("=")[2].strip() for row in rows if row.startswith("home")]
    return all(Path(home).exists() for home in homes)


def _python_of(venv: Path) -> Path:
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


# --- install ------------------------------------------------------------------------


def _ensure_installed(venv: Path, extras: Sequence[str]) -> Path:
    """Install the project in `venv` unless it is; return the Python of it."""
    wanted = {"", *extras}
    if not _stamped_extras(venv) >= wanted:
        _refuse_32_bit_arm()
        try:
            with _locked(venv):
                installed = _stamped_extras(venv)
                if not installed >= wanted:  # no other start did it meanwhile
                    print(f"Setting up d8mesh in {venv} ...", flush=True)
                    _install(venv, sorted((installed | wanted) - {""}))
        except OSError as error:
            _refuse_disk(venv, error)
    return _python_of(venv)


def _install(venv: Path, extras: list[str]) -> None:
    with contextlib.suppress(FileNotFoundError):
        (venv / "d8-installed").unlink()
    _make_environment(venv)
    target = str(ROOT) + ("[{}]".format(",".join(extras)) if extras else "")
    command = [str(_python_of(venv)), "-m", "pip", "install", "--no-input", "--progress-bar=off"]
    _call([*command, "--disable-pip-version-check", "--editable", target], venv)
    unfinished = venv / "d8-installed.new"
    unfinished.write_text("\n".join([_stamp(venv), *extras]), "utf-8")
    unfinished.replace(venv / "d8-installed")


def _make_environment(venv: Path) -> None:
    """Make `venv`, or mend it; never touch a folder that is something else."""
    is_venv = (venv / "pyvenv.cfg").exists()
    if not is_venv and venv.exists() and any(venv.iterdir()):
        raise SetupError(
            f"{venv} is no virtual environment and not empty: name another folder in D8_VENV"
        )
    python = str(_python_of(venv))
    has_pip = [python, "-m", "pip", "--version"]
    if is_venv and _is_alive(venv) and _version_of(Path(python)) >= MINIMUM:
        if _succeeds(has_pip):
            return
        if _succeeds([python, "-m", "ensurepip"]) and _succeeds(has_pip):
            return
    if not _succeeds([sys.executable, "-c", "import venv, ensurepip; ensurepip.version"]):
        raise SetupError(_no_venv_sentence())
    _call([sys.executable, "-m", "venv", "--clear", str(venv)], venv)


def _no_venv_sentence() -> str:
    version = "{}.{}".format(*sys.version_info[:2])
    sentence = f"this Python ({sys.executable}) cannot make a virtual environment: "
    if shutil.which("apt-get"):
        return sentence + (
            f"sudo apt-get install python3-venv (or python{version}-venv), then start it again"
        )
    return sentence + "install its `venv` and `ensurepip` modules, then start it again"


def _succeeds(command: list[str]) -> bool:
    quiet = subprocess.DEVNULL
    environment = _without(MISLEADING + CONFUSING)
    return not subprocess.run(command, stdout=quiet, stderr=quiet, env=environment).returncode


def _call(command: list[str], venv: Path) -> None:
    """Run `command` without a word; if it fails, say why and what to do."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_without(MISLEADING + CONFUSING),
        cwd=str(ROOT),
    )
    if done.returncode == 0:
        return
    output = done.stdout.decode("utf-8", "replace")
    if "ensurepip is not available" in output:  # Debian's own words
        raise SetupError(_no_venv_sentence())
    if "No space left" in output or "Errno 28" in output:
        raise SetupError(f"the disk of {venv} is full: make room, then start again")
    if any(sign in output for sign in ("Permission denied", "Read-only file system")):
        _refuse_disk(venv, output.strip().splitlines()[-1])
    if any(sign in output for sign in NETWORK_SIGNS):
        raise SetupError(
            "the packages could not be fetched: is this machine on the network, and does it "
            "reach the package index that pip is set up for? Once installed, d8mesh needs no "
            f"internet. pip said: {_last_errors(output)}"
        )
    raise SetupError(f"setting up failed, {command[2]} said: {_last_errors(output)}")


def _last_errors(output: str) -> str:
    rows = [row.strip() for row in output.splitlines() if row.strip()]
    errors = [row for row in rows if row.startswith("ERROR:")]
    return " / ".join((errors or rows)[-2:])


def _refuse_disk(venv: Path, error: object) -> NoReturn:
    raise SetupError(
        f"{venv} cannot be written ({error}): make it writable, or name another folder in D8_VENV"
    )


# --- one install at a time --------------------------------------------------------------


@contextlib.contextmanager
def _locked(venv: Path) -> Iterator[None]:
    """Hold the install lock of `venv`: an operating-system lock, gone with its process."""
    venv.parent.mkdir(parents=True, exist_ok=True)
    ends_at = time.monotonic() + LOCK_WAIT_S
    with Path(f"{venv}.lock").open("a+b") as file:
        while not _try_lock(file):
            if time.monotonic() > ends_at:
                raise SetupError(f"another start of d8mesh is still setting up {venv}")
            time.sleep(LOCK_POLL_S)
        yield


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
