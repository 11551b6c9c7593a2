"""The launcher, really run: on a small project of its own that needs no network."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).resolve().parent.parent / "start_d8.py"
#: Making a virtual environment takes seconds on a small card.
PATIENCE_S = 110
SETTING_UP = "Setting up d8mesh"

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "d8mesh"
version = "0.1"
dependencies = []
optional-dependencies = { test = [] }
"""

#: A build backend without needs: its editable wheel points at the project's folder.
BACKEND = """\
import pathlib, zipfile
META = "Metadata-Version: 2.1\\nName: d8mesh\\nVersion: 0.1\\nProvides-Extra: test\\n"
WHEEL = "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "d8mesh-0.1-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        wheel.writestr("d8mesh.pth", str(pathlib.Path.cwd()))
        wheel.writestr("d8mesh-0.1.dist-info/METADATA", META)
        wheel.writestr("d8mesh-0.1.dist-info/WHEEL", WHEEL)
        wheel.writestr("d8mesh-0.1.dist-info/RECORD", "")
    return name
"""

CLI = """\
import json, sys
def main(arguments):
    print(json.dumps({"arguments": arguments, "prefix": sys.prefix, "version": sys.version}))
    return int(arguments[-1]) if arguments and arguments[-1].isdigit() else 0
"""


def make_project(folder: Path) -> Path:
    (folder / "d8mesh").mkdir(parents=True)
    shutil.copy(LAUNCHER, folder)
    (folder / "pyproject.toml").write_text(PYPROJECT, "utf-8")
    (folder / "backend.py").write_text(BACKEND, "utf-8")
    (folder / "d8mesh" / "__init__.py").write_text("", "utf-8")
    (folder / "d8mesh" / "cli.py").write_text(CLI, "utf-8")
    return folder


def environment(project: Path, **more: str) -> dict[str, str]:
    kept = {
        name: os.environ[name]
        for name in ("PATH", "SYSTEMROOT", "TEMP", "TMP", "LANG")
        if name in os.environ
    }
    home = project.parent / f"{project.name}-home"
    home.mkdir(exist_ok=True)
    return {
        **kept,
        "HOME": str(home),
        "USERPROFILE": str(home),
        "PIP_NO_INDEX": "1",
        "PYTHONUTF8": "1",
        **more,
    }


def base_python() -> str:
    """Return a Python outside any virtual environment."""
    return getattr(sys, "_base_executable", None) or sys.executable


def begin(
    project: Path, *arguments: str, python: str | None = None, **env: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python or base_python(), str(project / "start_d8.py"), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment(project, **env),
        cwd=project.parent,
    )


def start(
    project: Path, *arguments: str, python: str | None = None, **env: str
) -> tuple[int, str, str]:
    process = begin(project, *arguments, python=python, **env)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def start_pretending(project: Path, pretence: str, **env: str) -> tuple[int, str]:
    """Run the launcher after the statements `pretence`, in a Python as it is."""
    code = (
        f"import sys; {pretence}; import runpy; sys.argv = ['start_d8.py', 'status']\n"
        f"runpy.run_path({str(project / 'start_d8.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [base_python(), "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        env=environment(project, **env),
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_nothing_is_installed_to_tell_what_bench_takes(project: Path) -> None:
    for words in (("bench", "--help"), ("bench", "latency", "-h")):
        code, out, err = start(project, *words)
        assert (code, err) == (0, "")
        assert SETTING_UP not in out
    code_text = (
        "import sys; sys.modules['psutil'] = None; from d8mesh.cli import main\n"
        "sys.exit(main(['bench', '--help']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code_text],
        capture_output=True,
        encoding="utf-8",
        cwd=LAUNCHER.parent,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "SCENARIO" in done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project that two starts at the same time have set up."""
    folder = make_project(tmp_path_factory.mktemp("launcher") / "with blank ñ")
    both = [begin(folder, "status", "0"), begin(folder, "status", "0")]
    results = [process.communicate(timeout=PATIENCE_S) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert sum(out.count(SETTING_UP) for out, _ in results) == 1
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Make a project that nobody has started yet."""
    return make_project(tmp_path / "bare")


@pytest.mark.parametrize(
    ("machine", "bits", "seen"),
    [
        ("armv7l", 32, "this system is a 32-bit one (armv7l)"),
        ("armv6l", 32, "this processor is a 32-bit one (armv6l: Raspberry Pi 1 or Zero)"),
        ("aarch64", 32, "this processor is a 64-bit one (aarch64), but the system on it is 32-bit"),
    ],
)
def test_32_bit_arm_is_told_before_pip_runs(bare: Path, machine: str, bits: int, seen: str) -> None:
    code, said = start_pretending(
        bare,
        f"import platform, struct; platform.machine = lambda: {machine!r}; "
        f"struct.calcsize = lambda format: {bits // 8}",
        PIP_NO_INDEX="",
    )
    assert code == 2
    assert seen in said
    assert "64-bit Raspberry Pi OS is needed" in said
    assert SETTING_UP not in said
    assert not (bare / ".venv").exists()


@pytest.mark.parametrize(("machine", "pointer"), [("aarch64", 8), ("x86_64", 8), ("i686", 4)])
def test_other_machines_are_set_up(project: Path, machine: str, pointer: int) -> None:
    code, said = start_pretending(
        project,
        f"import platform, struct; platform.machine = lambda: {machine!r}; "
        f"struct.calcsize = lambda format: {pointer}",
    )
    assert code == 0, said


def test_it_can_be_read_by_python_3_8() -> None:
    source = LAUNCHER.read_text("utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    assert ast.get_docstring(tree)
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


def test_it_runs_in_its_own_environment_and_installs_once(project: Path) -> None:
    code, out, err = start(project, "worker", "--type", "ñ x", "7")
    assert (code, err) == (7, "")
    told = json.loads(out)
    assert told["arguments"] == ["worker", "--type", "ñ x", "7"]
    assert Path(told["prefix"]).resolve() == (project / ".venv").resolve()


def test_the_environments_own_python_goes_straight_on(project: Path) -> None:
    scripts = project / ".venv" / ("Scripts" if os.name == "nt" else "bin")
    code, out, _ = start(project, "status", python=str(scripts / "python"))
    assert code == 0
    assert SETTING_UP not in out


@pytest.mark.slow
def test_a_changed_project_file_and_a_new_extra_install_again(project: Path) -> None:
    with (project / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert SETTING_UP in start(project, "status")[1]
    assert SETTING_UP not in start(project, "status")[1]
    assert SETTING_UP in start(project, "test")[1]
    assert SETTING_UP not in start(project, "test")[1]
    assert SETTING_UP not in start(project, "status")[1]


@pytest.mark.slow
def test_a_half_made_environment_is_mended(project: Path) -> None:
    (project / ".venv" / "d8-installed").unlink()
    for pip in list((project / ".venv").rglob("site-packages/pip*")):
        shutil.rmtree(pip)
    code, out, err = start(project, "status")
    assert (code, err) == (0, "")
    assert SETTING_UP in out


@pytest.mark.slow
def test_an_environment_whose_python_is_gone_is_made_anew(project: Path) -> None:
    config = project / ".venv" / "pyvenv.cfg"
    text = config.read_text("utf-8")
    config.write_text(re.sub(r"home = .*", "home = /gone/python", text), "utf-8")
    code, out, _ = start(project, "status")
    assert code == 0
    assert SETTING_UP in out
    assert "/gone" not in config.read_text("utf-8")


def test_a_python_that_is_too_old_says_so(bare: Path, tmp_path: Path) -> None:
    code, said = start_pretending(bare, "sys.version_info = (3, 8, 18)", PATH=str(tmp_path))
    assert code == 2
    assert "this is Python 3.8, and d8mesh needs Python 3.11 or newer" in said
    assert "Traceback" not in said
    assert not (bare / ".venv").exists()


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for the newer Python")
def test_a_python_that_is_too_old_hands_over_to_a_newer_one(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, command in (
        ("python3.13", "exit 127"),
        ("python3.12", f'exec {sys.executable} "$@"'),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{command}\n", "utf-8")
        (folder / name).chmod(0o755)
    code, said = start_pretending(project, "sys.version_info = (3, 8, 18)", PATH=str(folder))
    assert code == 0, said
    assert '"arguments": ["status"]' in said


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for the poor Python")
def test_a_python_without_venv_names_the_package(bare: Path, tmp_path: Path) -> None:
    poor, apt = tmp_path / "python3", tmp_path / "apt-get"
    for file in (poor, apt):
        file.write_text("#!/bin/sh\nexit 1\n", "utf-8")
        file.chmod(0o755)
    code, said = start_pretending(bare, f"sys.executable = {str(poor)!r}", PATH=str(tmp_path))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert code == 2
    assert "cannot make a virtual environment" in said
    assert f"sudo apt-get install python3-venv (or python{version}-venv)" in said
    assert not (bare / ".venv").exists()


@pytest.mark.slow
def test_a_network_that_is_down_is_told_and_the_next_start_tries_again(bare: Path) -> None:
    text = PYPROJECT.replace("dependencies = []", 'dependencies = ["d8-needs-this"]', 1)
    (bare / "pyproject.toml").write_text(text, "utf-8")
    backend = BACKEND.replace("Provides-Extra: test", "Requires-Dist: d8-needs-this")
    (bare / "backend.py").write_text(backend, "utf-8")
    dead = {"PIP_NO_INDEX": "", "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}

    code, out, err = start(bare, "status", **dead)

    assert code == 2
    assert out.count("\n") == 1
    assert "the packages could not be fetched: is this machine on the network" in err
    assert "Traceback" not in err
    make_project(bare.parent / "fine")
    shutil.copy(bare.parent / "fine" / "backend.py", bare)
    (bare / "pyproject.toml").write_text(PYPROJECT, "utf-8")
    assert start(bare, "status")[0] == 0


def test_a_place_that_cannot_be_written_is_told(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    code, _, err = start(bare, "status", D8_VENV=str(tmp_path / "file" / "venv"))
    assert code == 2
    assert "cannot be written" in err
    assert "D8_VENV" in err


def test_a_folder_that_is_something_else_is_never_touched(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", "utf-8")
    code, _, err = start(bare, "status", D8_VENV=str(tmp_path / "mine"))
    assert code == 2
    assert "is no virtual environment and not empty" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_launcher_without_its_project_is_told(bare: Path) -> None:
    (bare / "pyproject.toml").unlink()
    code, _, err = start(bare, "status")
    assert code == 2
    assert "start d8mesh from its whole folder" in err


def test_nothing_is_installed_where_that_is_forbidden(bare: Path) -> None:
    code, out, _ = start(bare, "status", "3", D8_NO_INSTALL="1")
    assert code == 3
    assert SETTING_UP not in out
    assert not (bare / ".venv").exists()
