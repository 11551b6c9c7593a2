"""`--tasks`: modules by name and by file, found as Python itself finds them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from d8mesh.errors import ConfigError
from d8mesh.processes.task_modules import is_path, load

ROOT = Path(__file__).resolve().parents[2]
HANDLERS = """
{imports}
def hello(data):
    return {value}
def register(worker):
    worker.register("hello", hello)
"""


class Handlers:
    """What handlers are registered with."""

    def __init__(self) -> None:
        self.found: dict[str, Callable[..., object]] = {}

    def register(self, name: str, handler: Callable[..., object]) -> None:
        self.found[name] = handler


def written(file: Path, *, imports: str = "", value: str = "1") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(HANDLERS.format(imports=imports, value=value), "utf-8")
    return file


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The current folder and the path are this test's own, and so are modules of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    yield
    for name in [name for name in sys.modules if name.startswith("d8") and name[2:3] != "m"]:
        del sys.modules[name]


def loaded(name: str) -> Callable[..., object]:
    handlers = Handlers()
    load(name, handlers)
    return handlers.found["hello"]


def test_a_path_is_told_from_a_module() -> None:
    assert all(map(is_path, ("a.py", "./a", "x/y.py", r"C:\x\h.py", "/abs/h.py", "x/y")))
    assert not any(map(is_path, ("a", "my.handlers", "pkg.mod")))


@pytest.mark.parametrize("name", ["my/d8hand.py", "./my/d8hand.py", "my/d8hand", "{}/my/d8hand.py"])
def test_a_file_is_loaded_with_its_neighbours(tmp_path: Path, name: str) -> None:
    written(tmp_path / "my" / "d8hand.py", imports="import d8_neighbour", value="d8_neighbour.N")
    (tmp_path / "my" / "d8_neighbour.py").write_text("N = 41\n", "utf-8")
    assert loaded(name.format(tmp_path))({}) == 41


def test_a_file_may_have_a_name_that_no_import_statement_takes(tmp_path: Path) -> None:
    written(tmp_path / "d8-my-hand.py", value="5")
    assert loaded("d8-my-hand.py")({}) == 5


def test_a_file_of_a_package_is_loaded_as_its_module(tmp_path: Path) -> None:
    written(
        tmp_path / "src" / "d8pkg" / "sub" / "mod.py", imports="from ..tools import N", value="N"
    )
    for folder in ("src/d8pkg", "src/d8pkg/sub"):
        (tmp_path / folder / "__init__.py").write_text("", "utf-8")
    (tmp_path / "src" / "d8pkg" / "tools.py").write_text("N = 7\n", "utf-8")
    found = loaded("src/d8pkg/sub/mod.py")
    assert (found({}), found.__module__) == (7, "d8pkg.sub.mod")


def test_a_module_is_found_in_the_current_folder(tmp_path: Path) -> None:
    written(tmp_path / "d8here.py", value="3")
    assert loaded("d8here")({}) == 3


def test_a_process_of_a_handler_finds_the_file(tmp_path: Path) -> None:
    written(tmp_path / "with blank" / "d8far.py", value="5")
    found = loaded("with blank/d8far.py")
    path = os.pathsep.join(each for each in sys.path if each)  # as `edge.child` passes it on
    code = f"import {found.__module__} as m; print(m.hello({{}}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "5\n", done.stderr


def test_files_beside_it_do_not_take_the_place_of_what_d8mesh_needs(tmp_path: Path) -> None:
    written(tmp_path / "mine" / "d8work.py")
    for name in ("colorsys", "csv"):
        (tmp_path / "mine" / f"{name}.py").write_text("raise SystemExit('the wrong one')", "utf-8")
    code = (
        "import sys; from d8mesh.processes.task_modules import load\n"
        "class Worker:\n    def register(self, *given): pass\n"
        "load('mine/d8work.py', Worker())\n"
        "import colorsys, csv; print(csv.__file__, colorsys.__file__, sys.path[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    *found, first = done.stdout.split()
    assert len(found) == 2, done.stderr
    assert all("mine" not in Path(file).parts for file in found)
    assert first == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("nowhere/x.py", None, r"there is no file .*x\.py"),
        (r"C:\x\h.py", None, "there is no file"),
        ("no_such_module_here", None, "cannot be imported: ModuleNotFoundError"),
        ("not a module", None, r"expected a module \(my.handlers\) or a file"),
        ("d8a.txt/", None, "there is no file"),
        ("./d8syntax.py", "def (", "cannot be imported: SyntaxError"),
        ("./d8exit.py", "raise SystemExit(3)", "cannot be imported: SystemExit"),
        ("./d8none.py", "x = 1", r"expected a function register\(worker\)"),
        ("./d8.dot.py", "", "cannot be a module's name"),
        ("./json.py", "", "the module name json is taken by .*json"),
        ("./d8raises.py", "def register(worker): 1 / 0", "register.worker. raised ZeroDivision"),
    ],
)
def test_what_cannot_be_loaded_is_told(
    tmp_path: Path, name: str, content: str | None, told: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=told) as raised:
        load(name, Handlers())
    assert str(raised.value).startswith(f"--tasks {name}: ")


def test_two_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    written(tmp_path / "a" / "d8same.py")
    written(tmp_path / "b" / "d8same.py")
    loaded("a/d8same.py")
    with pytest.raises(ConfigError, match="give the file another name"):
        loaded("b/d8same.py")
