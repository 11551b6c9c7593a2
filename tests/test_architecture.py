"""The house rules: who imports whom, how large things are, that tests mirror the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from d8mesh.core.broker.records import History, TaskRecord

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "d8mesh"
MIRRORED_LAYERS = (
    "core", "edge", "backends", "handlers", "nodes", "http", "doors", "processes", "apps",
)  # fmt: skip
MAX_MODULE_LINES = 500
#: The aim is 40; this is the hard bound.
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6
#: A function that fits no module means that a noun is missing.
FORBIDDEN_NAMES = frozenset(
    {"utils", "util", "common", "helpers", "helper", "manager", "base", "types", "misc"}
)
#: The public Python calls, and protocols of them, say `timeout`, in seconds, as
#: `concurrent.futures` does.
PUBLIC_CALLS = (
    "d8mesh.nodes.client.", "d8mesh.apps.work", "d8mesh.apps.following",
)  # fmt: skip
#: Seconds for the slowest of these checks on a loaded small machine.
PATIENCE_S = 110
#: Modules are imported in so many interpreters at a time.
AT_A_TIME = 2

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def functions_of(path: Path) -> Iterator[FunctionNode]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, FunctionNode):
            yield node


def test_import_contracts_are_kept() -> None:
    code = "from importlinter.cli import lint_imports_command as run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def test_no_import_inside_the_client_is_deferred() -> None:
    """Where all imports are at the top, the contracts see each circle."""
    deferred = [
        f"{name_of(path)}:{node.lineno}"
        for path in (PACKAGE / "nodes" / "client").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom) and node.col_offset
    ]
    assert deferred == []


def test_every_module_is_read_in_one_sitting() -> None:
    lengths = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {name: n for name, n in lengths.items() if n > MAX_MODULE_LINES} == {}


def test_functions_are_short() -> None:
    long = {
        f"{name_of(path)}.{node.name}": length
        for path in [*MODULES, ROOT / "start_d8.py"]
        for node in functions_of(path)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_functions_take_few_parameters() -> None:
    many = {}
    for path in [*MODULES, ROOT / "start_d8.py"]:
        for node in functions_of(path):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [each.arg for each in given if each.arg not in ("self", "cls")]
            if len(names) > MAX_PARAMETERS:
                many[f"{name_of(path)}.{node.name}"] = names
    assert many == {}


def test_a_duration_names_its_unit() -> None:
    bare = {
        f"{name_of(path)}.{node.name}"
        for path in MODULES
        if not name_of(path).startswith(PUBLIC_CALLS)
        for node in functions_of(path)
        for each in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if each.arg in ("timeout", "delay", "interval", "duration")
    }
    assert bare == set()


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert [name_of(path) for path in MODULES if path.stem in FORBIDDEN_NAMES] == []


def names_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what a module calls by a capital: classes, each a meaning of its own, and the
    constants, aliases and type variables with their values, as they are written.
    """
    tree = ast.parse(path.read_text("utf-8"))
    for each in ast.walk(tree):
        if isinstance(each, ast.ClassDef):
            yield each.name.lstrip("_"), f"class in {name_of(path)}:{each.lineno}"
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and value is not None:
            yield target.id.lstrip("_"), ast.unparse(value)


def test_no_name_has_two_meanings() -> None:
    """An underscore before it does not make another name of it."""
    meanings: dict[str, dict[str, list[str]]] = {}
    for path in MODULES:
        for name, value in names_of(path):
            if name[:1].isupper():
                meanings.setdefault(name, {}).setdefault(value, []).append(name_of(path))
    assert {name: found for name, found in meanings.items() if len(found) > 1} == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        name_of(path)
        for path in MODULES
        if path.read_text("utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert silent == []


@pytest.mark.parametrize("layer", MIRRORED_LAYERS)
def test_tests_mirror_the_package(layer: str) -> None:
    missing = []
    for path in sorted((PACKAGE / layer).rglob("*.py")):
        inner = path.relative_to(PACKAGE / layer)
        if path.stem == "__init__":
            continue
        home = ROOT / "tests" / layer
        wanted = home / inner.parent / f"test_{path.stem}.py"
        # A module that was split into a package may keep one test module for all of it.
        whole = [home / each.parent / f"test_{each.name}.py" for each in inner.parents if each.name]
        if not any(test.exists() for test in [wanted, *whole]):
            missing.append(str(wanted.relative_to(ROOT)))
    assert missing == []


#: Imports each of the modules named to it with nothing else of the package there.
ONE_BY_ONE = """
import importlib, sys
for name in sys.argv[1:]:
    for there in [each for each in sys.modules if each.partition(".")[0] == "d8mesh"]:
        del sys.modules[there]
    try:
        importlib.import_module(name)
    except BaseException as error:
        sys.exit(f"{name}: {error!r}")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_module_imports_alone() -> None:
    names = [name_of(path) for path in MODULES if path.stem != "__main__"]
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", ONE_BY_ONE, *names[start::AT_A_TIME]],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for start in range(AT_A_TIME)
    ]
    errors = [each.communicate(timeout=5 * PATIENCE_S)[1] for each in running]
    assert errors == [b""] * AT_A_TIME


def test_the_core_stands_without_what_is_outside() -> None:
    core = [name_of(path) for path in MODULES if path.is_relative_to(PACKAGE / "core")]
    code = (
        f"import sys, {', '.join(core)}\n"
        "outside = {'zmq', 'zeroconf', 'werkzeug', 'httptools', 'apsw', 'sqlite3', 'rich'}\n"
        "print(sorted(outside & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_only_the_task_table_changes_what_the_facts_tell_of_a_task() -> None:
    """`attempt` and `failed_at` are what no fact tells; all else of a task and its history is."""
    owned = {*TaskRecord.__slots__, *History.__slots__} - {"attempt", "failed_at"}
    room = PACKAGE / "core" / "broker"
    found = [
        f"{path.name}:{node.lineno} {ast.unparse(node)}"
        for path in room.glob("*.py")
        if path.name not in ("task_table.py", "records.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if node.attr in owned and ast.unparse(node.value) in ("task", "history", "task.history")
    ]
    assert found == []


def test_a_backend_knows_what_all_share_and_no_other_backend() -> None:
    accounts = ("", ".account", ".bounds", ".days", ".ledger", ".siblings")
    parts = (
        *("answer_clocks", "answer_in_pieces", "answer_loop", "backend", "exchange"),
        *("kept_connections", "reach", "streaming"),
    )
    shared = {f"d8mesh.backends.{each}" for each in parts}
    shared |= {f"d8mesh.backends.accounts{each}" for each in accounts}
    room = PACKAGE / "backends"
    for path in room.rglob("*.py"):
        if path == room / "__init__.py":
            continue
        own = ".".join(name_of(path).split(".")[:3])
        known = {
            node.module
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("d8mesh.backends")
        }
        assert {each for each in known if not f"{each}.".startswith(f"{own}.")} <= shared, own


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules of ours that a module names in an import, wherever that stands."""
    known = {name_of(each) for each in MODULES}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from {whole if whole in known else node.module} & known
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & known


def test_no_imports_make_a_circle_not_even_for_types_or_inside_functions() -> None:
    """But by way of `d8mesh` itself, which loads its names lazily."""
    graph = {
        name_of(path): {each for each in imports_of(path) if each != "d8mesh"}
        for path in MODULES
        if name_of(path) != "d8mesh"
    }
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle
