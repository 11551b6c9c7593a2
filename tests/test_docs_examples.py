"""The examples of docs/PYTHON.md run as they stand, and every public call stands there."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

import d8mesh
from d8mesh.core.protocol.addresses import parse_endpoint
from tests.nodes.mesh import PATIENCE_S, mesh_in, until

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "PYTHON.md").read_text("utf-8")
#: (place, code) of each block; one that only shows something is ```text.
BLOCKS = [
    (f"line {TEXT.count(chr(10), 0, found.start()) + 1}", found[1])
    for found in re.finditer(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
]
#: The block that begins so is a program of its own: the worker of all the others.
WORKER = "# worker.py\n"
EXAMPLES = [block for block in BLOCKS if not block[1].startswith(WORKER)]
#: What each may take.
EXAMPLE_S = 60


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An orchestrator, and a process with the settings that lead to it."""
    folder = tmp_path_factory.mktemp("docs")
    with mesh_in(folder) as mesh, pytest.MonkeyPatch.context() as patch:
        port = mesh.broker()

        def application(environ: Any, start_response: Any) -> Any:
            assert Request(environ).path == "/health"
            told = {"broker_port": port, "server_key": parse_endpoint(mesh.endpoint(port))[2]}
            body = json.dumps(told, default=bytes.hex)
            return Response(body)(environ, start_response)

        http = make_server("127.0.0.1", 0, application, threaded=True)
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        for name, value in {
            "ORCHESTRATOR_URL": f"http://127.0.0.1:{http.server_port}",
            "D8_MESH": mesh.mesh,
            "D8_INTERFACES": "127.0.0.1",
            "D8_DATA_DIR": str(folder / "data"),
            "PYTHONPATH": str(ROOT),
        }.items():
            patch.setenv(name, value)
        try:
            yield
        finally:
            http.shutdown()
            thread.join(PATIENCE_S)
            http.server_close()


@pytest.fixture(scope="module")
def worker(environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The worker of the first example, as a person starts it."""
    (code,) = [code for _, code in BLOCKS if code.startswith(WORKER)]
    path = tmp_path_factory.mktemp("worker") / "worker.py"
    path.write_text(code, "utf-8")
    process = subprocess.Popen([sys.executable, str(path)], cwd=path.parent, env=dict(os.environ))
    try:
        with d8mesh.Client() as client:
            until(lambda: [w for w in client.workers() if w["status"] == "online"])
        yield
    finally:
        process.terminate()
        try:
            assert process.wait(PATIENCE_S) == 0 or sys.platform == "win32"
        finally:
            process.kill()
            process.wait()


def expected(code: str) -> list[str]:
    """Return what an example says that it prints, line by line."""
    return [found.strip() for found in re.findall(r"^\s*print\(.*\)  # (.*)$", code, re.MULTILINE)]


@pytest.mark.timeout(EXAMPLE_S)
@pytest.mark.parametrize(("place", "code"), EXAMPLES, ids=[place for place, _ in EXAMPLES])
def test_an_example_runs_and_prints_what_it_says(worker: None, place: str, code: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, f"docs/PYTHON.md, {place}", "exec"), {"__name__": "__main__"})  # noqa: S102
    assert said.getvalue().splitlines() == expected(code)


def test_every_example_shows_something() -> None:
    assert len(EXAMPLES) >= 10
    assert [place for place, code in EXAMPLES if not expected(code)] == []


# ----------------------------------------------------------------- everything stands there


def _words(text: str) -> set[str]:
    """Return what stands in backticks, in words."""
    quoted = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return {word for each in quoted for word in re.findall(r"\w+", each)}


@pytest.mark.parametrize("name", sorted(set(d8mesh.__all__) - {"__version__"}))
def test_every_public_name_stands_in_the_doc(name: str) -> None:
    assert name in _words(TEXT)


def _section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize(
    ("kind", "section"),
    [
        (d8mesh.Client, "Client"),
        (d8mesh.Task, "Task"),
        (d8mesh.TaskExecutor, "Executor"),
        (d8mesh.Worker, "Worker"),
        (d8mesh.TaskContext, "TaskContext"),
    ],
)
def test_every_member_and_argument_stands_in_its_section(kind: Any, section: str) -> None:
    inside = _words(_section("For d8mesh's own doors"))
    told = _words(_section(section))
    missing = set()
    for name, member in vars(kind).items():
        is_made = name == "__init__" and kind in (d8mesh.Client, d8mesh.Worker)  # by people
        if (name.startswith("_") and not is_made) or name in inside:
            continue
        if name not in told and not is_made:
            missing.add(name)
        if inspect.isfunction(member):
            given = inspect.signature(member).parameters.values()
            named = {each.name for each in given if each.kind is not each.VAR_KEYWORD}
            missing |= {f"{name}({each})" for each in named - told - {"self"}}
    assert missing == set()


def test_every_option_of_a_submit_stands_in_the_doc_and_no_other() -> None:
    table = TEXT.partition("### Options of a submit")[2].partition("\n### ")[0]
    options = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert options == set(d8mesh.SubmitOptions.__optional_keys__)


def test_every_error_of_the_doc_is_public_and_the_other_way_round() -> None:
    table = _section("Errors").partition("| --- |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`(\w+Error)`", row)}
    assert told == {name for name in d8mesh.__all__ if name.endswith("Error")}
    by_name = {name: getattr(d8mesh, name) for name in told}
    for line in table.splitlines():
        for base in re.findall(r"also an? `(\w+)`", line):
            for name in re.findall(r"`(\w+Error)`", line.split("|")[1]):
                assert base in {each.__name__ for each in by_name[name].__mro__}, line


def test_the_dicts_that_are_documented_are_the_typed_ones() -> None:
    from d8mesh.nodes.client import overview

    told = _words(_section("Looking at the mesh"))
    for kind in vars(overview).values():
        if hasattr(kind, "__required_keys__"):
            assert kind.__required_keys__ <= told, kind.__name__
