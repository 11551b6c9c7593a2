"""What a process can import is registered for one; all else is refused, with what to do."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from d8mesh.errors import HandlerError
from d8mesh.nodes.worker import Worker
from d8mesh.nodes.worker.importable import process_name
from tests.nodes import process_handlers
from tests.nodes.process_handlers import SubTool, Tool, tool

HERE = "tests.nodes.process_handlers"


def nested() -> Callable[[dict[str, Any]], None]:
    def inner(data: dict[str, Any]) -> None: ...

    return inner


@pytest.mark.parametrize(
    ("handler", "name"),
    [
        (process_handlers.pid, "pid"),
        (process_handlers.wrapped_in_place, "wrapped_in_place"),
        (Tool.static, "Tool.static"),
        (Tool.of_class, "Tool.of_class"),
        (Tool, "Tool"),
    ],
)
def test_what_goes_by_its_name_is_registered(handler: Callable[..., Any], name: str) -> None:
    assert process_name(handler) == f"{HERE}:{name}"


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (lambda data: None, "a lambda"),
        (nested(), "the nested function nested.inner"),
        (tool.method, "the bound method Tool.method"),
        (tool, "an object of class Tool"),
        (functools.partial(process_handlers.pid), "a functools.partial"),
        (process_handlers.wrapped, "functools.wraps"),
        (process_handlers.wrapped_in_place.__wrapped__, "register the wrapper"),
        (SubTool.of_class, "the bound method"),
    ],
)
def test_what_another_process_would_not_get_is_refused_at_once(
    handler: Callable[..., Any], said: str
) -> None:
    with pytest.raises(HandlerError, match=said) as caught:
        Worker().register("t", handler, process=True)
    assert "top of a module" in str(caught.value)


def run(folder: Path, name: str, content: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / name).write_text(textwrap.dedent(content), "utf-8")
    path = os.pathsep.join([str(folder), *(each for each in sys.path if each)])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "D8_INTERFACES": "no-mdns"},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def test_a_function_of_the_started_script_is_refused(tmp_path: Path) -> None:
    script = """
        from d8mesh.nodes.worker import Worker

        def handler(data): ...

        Worker().register("t", handler, process=True)
    """
    done = run(tmp_path, "script.py", script, "script.py")
    assert "from the started script (__main__)" in done.stderr


@pytest.mark.parametrize(
    ("above", "below", "said"),
    [
        ("@worker.task('t', process=True)", "", "started"),
        ("@worker.task('t', process=True)", "@wraps", "started"),
        ("@wraps", "@worker.task('t', process=True)", "register the wrapper"),
    ],
)
def test_a_decorator_registers_before_the_name_is_there_and_start_looks_again(
    tmp_path: Path, above: str, below: str, said: str
) -> None:
    module = """
        import functools
        from d8mesh.nodes.worker import Worker

        def wraps(handler):
            @functools.wraps(handler)
            def wrapper(data):
                return handler(data)
            return wrapper

        worker = Worker()

        ABOVE
        BELOW
        def handler(data): ...
    """.replace("ABOVE", above).replace("BELOW", below)
    go = "import mine; mine.worker.start(); print('started'); mine.worker.stop()"
    done = run(tmp_path, "mine.py", module, "-c", go)
    assert said in done.stdout + done.stderr
