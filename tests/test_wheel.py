"""The wheel, installed into an environment of its own, used as a person would: `d8mesh`."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from d8mesh import __version__
from d8mesh.apps.demo import free_ports
from d8mesh.backends.embedded import packages
from tests.end_to_end.processes import until

pytest.importorskip("pip", reason="what builds and installs a wheel")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
#: What a wheel is made of; built elsewhere, as a build leaves folders beside its source.
SOURCE = ("pyproject.toml", "README.md", "LICENSE", "d8mesh")
PATIENCE_S = 110


@dataclass
class Installed:
    """A new environment with the wheel, an empty folder to work in, and an empty home."""

    scripts: Path
    folder: Path
    home: Path

    @property
    def command(self) -> str:
        return str(self.scripts / ("d8mesh.exe" if os.name == "nt" else "d8mesh"))

    @property
    def python(self) -> str:
        return str(self.scripts / ("python.exe" if os.name == "nt" else "python"))

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
        home = {name: str(self.home) for name in ("HOME", "USERPROFILE", "LOCALAPPDATA")}
        return {
            **kept,
            **home,
            "D8_INTERFACES": "127.0.0.1",
            "FLASK_HOST": "127.0.0.1",
            "D8_MESH": os.environ["D8_MESH"],
            **more,
        }

    def run(self, argv: Sequence[str], **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            cwd=self.folder,
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE_S,
            check=False,
        )


def health(port: int) -> dict[str, object]:
    """Return what the REST says of itself, be it well or not."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        with error:
            return dict(json.load(error))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in SOURCE:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    made = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "-w", str(made), str(source)], check=True, timeout=PATIENCE_S)
    (found,) = made.glob("d8mesh-*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment with the wheel; what it needs is borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, symlinks=os.name != "nt")
    paths = sysconfig.get_paths("venv", vars={"base": str(folder), "platbase": str(folder)})
    python = Path(paths["scripts"]) / ("python.exe" if os.name == "nt" else "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    offline = ["--no-deps", "--no-index", "--no-compile", "-q"]
    subprocess.run([*pip, "install", *offline, str(wheel)], check=True, timeout=PATIENCE_S)
    # Only now: pip would take a d8mesh found there for installed. Paths named in a `.pth` have
    # no `.pth` of their own read, so the source of this checkout stays out.
    borrowed = Path(paths["purelib"]) / "borrowed.pth"
    borrowed.write_text("\n".join(site.getsitepackages()), "utf-8")
    return Path(paths["scripts"])


@pytest.fixture
def installed(environment: Path, tmp_path: Path) -> Installed:
    made = Installed(environment, tmp_path / "empty", tmp_path / "home")
    made.folder.mkdir()
    made.home.mkdir()
    return made


def test_the_wheel_holds_the_package_and_nothing_of_the_checkout(installed: Installed) -> None:
    code = "import d8mesh, sys; print(d8mesh.__file__)"
    done = installed.run([installed.python, "-c", code])
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).is_relative_to(ROOT)
    assert Path(done.stdout.strip()).is_relative_to(installed.scripts.parent)


def test_the_extra_local_names_the_runtime_of_the_embedded_model_and_no_more(
    installed: Installed,
) -> None:
    code = "from importlib.metadata import requires; print(*requires('d8mesh'), sep='\\n')"
    done = installed.run([installed.python, "-c", code])
    assert done.returncode == 0, done.stderr
    rows = [row.split(";") for row in done.stdout.splitlines() if "local" in row.partition(";")[2]]
    assert [need.strip() for need, _ in rows] == [packages.RUNTIME]
    assert "llm" not in done.stdout.replace(packages.RUNTIME, "")


def test_the_installed_command_says_its_version_and_its_help(installed: Installed) -> None:
    ways = (
        ([installed.command], "d8mesh"),
        ([installed.python, "-m", "d8mesh"], "python3 -m d8mesh"),
    )
    for argv, name in ways:
        version = installed.run([*argv, "--version"])
        assert (version.returncode, version.stdout) == (0, f"d8mesh {__version__}\n")
        told = installed.run([*argv, "--help"])
        assert told.returncode == 0
        assert f"usage: {name} " in told.stdout
        assert installed.run([*argv, "nonsense"]).returncode == 2


def test_the_installed_menu_ends_at_the_end_of_its_input(installed: Installed) -> None:
    done = installed.run([installed.command])
    assert (done.returncode, done.stderr) == (0, "")
    assert "Orchestrator" in done.stdout


def test_status_without_an_orchestrator_says_so(installed: Installed) -> None:
    (rest,) = free_ports(1)
    done = installed.run([installed.command, "status"], FLASK_PORT=str(rest))
    assert done.returncode == 1
    assert os.environ["D8_MESH"] in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_installed_orchestrator_keeps_its_data_with_the_user(installed: Installed) -> None:
    rest, broker = free_ports(2)
    (installed.folder / ".env").write_text(f"FLASK_PORT={rest}\n", "utf-8")
    (installed.folder / "queue.py").write_text("raise SystemExit('not this one')\n", "utf-8")
    process = subprocess.Popen(
        [installed.command, "orchestrator", "--with-parent"],
        cwd=installed.folder,
        env=installed.environment(D8_BROKER_PORT=str(broker)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        said = process.stdout.readline()
        assert f"REST on port {rest}" in said, said + process.stdout.read()
        until(lambda: health(rest)["status"] == "healthy", "health")
        assert health(rest)["broker_port"] == broker
        status = installed.run([installed.command, "status"], D8_BROKER_PORT=str(broker))
        assert status.returncode == 0, status.stdout + status.stderr
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0
    (journal,) = installed.home.rglob("journal.db")
    data = journal.parent.parent
    assert data.name == "d8mesh"
    assert list((data / "logs").glob("*.log"))
    assert sorted(path.name for path in installed.folder.iterdir()) == [".env", "queue.py"]
    assert not list(installed.scripts.parent.rglob("journal.db"))


def test_a_relative_data_folder_of_an_installed_one_lies_in_the_current_folder(
    installed: Installed,
) -> None:
    code = "from d8mesh import Worker; print(Worker()._config.data_dir)"
    python = [installed.python, "-c", code]
    assert installed.run(python, D8_DATA_DIR="here").stdout.strip() == str(
        installed.folder / "here"
    )
    default = Path(installed.run(python).stdout.strip())
    assert default.is_relative_to(installed.home)
    assert default.name == "d8mesh"
