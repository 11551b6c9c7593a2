"""What ``--tasks`` names: a module, or a file as it would be given to Python itself."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

from d8mesh.errors import ConfigError, D8Error

_MODULE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
#: Of Python's own, these do something when they are imported, or nobody needs them.
_NEVER_RUN: Final = frozenset({"antigravity", "this", "test", "idlelib", "tkinter", "turtle"})


def load(name: str, worker: object) -> None:
    """Import the handlers that `name` names and let them register with `worker`.

    Args:
        name: a module (``my.handlers``) or a file (``./my/handlers.py``). A file's folder, or
            for a file in a package the folder above that, comes first on ``sys.path``, and so
            does the current folder; processes of handlers get the same path.
        worker: given to the module's function ``register``.

    Raises:
        ConfigError: there is no such module or file, it raises, or has no ``register``.
    """
    module = _of_file(name) if is_path(name) else _of_name(name)
    register = getattr(module, "register", None)
    if not callable(register):
        raise ConfigError(f"--tasks {name}: expected a function register(worker) in it")
    try:
        register(worker)
    except D8Error:
        raise
    except Exception as error:  # whatever the module of a person raises
        kind = type(error).__name__
        raise ConfigError(f"--tasks {name}: its register(worker) raised {kind}: {error}") from error


def is_path(name: str) -> bool:
    """Tell whether `name` is a file's rather than a module's."""
    return name.endswith(".py") or any(mark in name for mark in "/\\")


def _of_file(name: str) -> ModuleType:
    file = Path(name).expanduser()
    if file.suffix != ".py" and file.with_name(f"{file.name}.py").is_file():
        file = file.with_name(f"{file.name}.py")
    if file.is_dir() and (file / "__init__.py").is_file():
        file = file / "__init__.py"
    if not file.is_file():
        raise ConfigError(f"--tasks {name}: there is no file {file.absolute()}")
    file = file.resolve()
    if file.suffix != ".py":
        raise ConfigError(f"--tasks {name}: expected a Python file, its name ends in .py")
    parts = [] if file.stem == "__init__" else [file.stem]
    folder = file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    module_name = ".".join(parts)
    if any("." in part for part in parts):  # my-handlers.py can be imported, my.handlers.py not
        raise ConfigError(
            f"--tasks {name}: {module_name!r} cannot be a module's name: expected no dot in it"
        )
    _put_on_path(Path.cwd())
    _put_on_path(folder)
    module = _imported(name, module_name)
    found = getattr(module, "__file__", None)
    if found is None or not Path(found).exists() or not Path(found).samefile(file):
        raise ConfigError(
            f"--tasks {name}: the module name {module_name} is taken by {found or 'Python itself'}"
            ": give the file another name"
        )
    return module


def _of_name(name: str) -> ModuleType:
    if not _MODULE.fullmatch(name):
        raise ConfigError(
            f"--tasks {name}: expected a module (my.handlers) or a file (./my/handlers.py)"
        )
    _put_on_path(Path.cwd())
    return _imported(name, name)


def _imported(name: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module of a person raises
        raise ConfigError(
            f"--tasks {name}: cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _put_on_path(folder: Path) -> None:
    """Let `folder` be looked in first, but never in place of what d8mesh itself needs."""
    text = str(folder)
    if text in sys.path or (folder.samefile(Path.cwd()) and "" in sys.path):
        return
    with contextlib.suppress(OSError):  # it cannot be listed: files in it may still be read
        for each in folder.iterdir():
            name = each.stem if each.suffix == ".py" or each.is_dir() else ""
            is_ours = name in sys.stdlib_module_names and name not in _NEVER_RUN
            if is_ours and name not in sys.modules:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
    sys.path.insert(0, text)
