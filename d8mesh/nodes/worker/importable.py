"""The name under which another process imports the very same handler, or why there is none."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, Final

from d8mesh.errors import HandlerError

_ADVICE: Final = "give register() a function at the top of a module, as it stands there"
_ABSENT: Final = object()


def process_name(handler: Callable[..., Any]) -> str:
    """Return ``MODULE:QUALNAME`` of a handler that another process can import.

    While its module is being imported (a decorator runs before the name is bound) the name is
    not proven yet: see `prove`.

    Raises:
        HandlerError: it has no such name, or something else goes by it.
    """
    module = getattr(handler, "__module__", None) or ""
    name = getattr(handler, "__qualname__", None) or ""
    if not isinstance(module, str) or not isinstance(name, str) or not name or "<" in name:
        raise HandlerError(f"process=True: a process cannot import {_kind(handler)}: {_ADVICE}")
    if module == "__main__":
        raise HandlerError(
            f"process=True: a process cannot import {name} from the started script (__main__): "
            "put it into a module of its own and import that"
        )
    if not _is_being_imported(module):
        prove(handler, f"{module}:{name}")
    return f"{module}:{name}"


def prove(handler: Callable[..., Any], function: str) -> None:
    """Make sure that another process which imports `function` gets this handler.

    Raises:
        HandlerError: it would get nothing, or something else.
    """
    found = _found(function)
    # Of a class method each look at the class makes an equal one.
    is_of_class = inspect.ismethod(handler) and inspect.isclass(handler.__self__)
    if found is handler or (is_of_class and found == handler):
        return
    if found is _ABSENT:
        why = "there is nothing of that name"
    else:
        why = f"that is {_kind(found)}"
        if inspect.unwrap(handler) is found:
            why += ", which this one wraps under its name (functools.wraps)"
        elif inspect.isfunction(found) and inspect.unwrap(found) is handler:
            why = "that is a wrapper around it: register the wrapper"
    raise HandlerError(
        f"process=True: the handler is {_kind(handler)}, and a process that imports {function} "
        f"would not get it: {why}. {_ADVICE[0].upper()}{_ADVICE[1:]}"
    )


def _found(function: str) -> Any:
    module, _, path = function.partition(":")
    found: Any = sys.modules.get(module, _ABSENT)
    for name in path.split("."):
        found = getattr(found, name, _ABSENT)
    return found


def _is_being_imported(module: str) -> bool:
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _kind(handler: object) -> str:
    name = str(getattr(handler, "__qualname__", ""))
    if inspect.ismethod(handler):
        return f"the bound method {name}"
    if isinstance(handler, functools.partial):
        return "a functools.partial"
    if name.endswith("<lambda>"):
        return "a lambda"
    if "<locals>" in name:
        return f"the nested function {name.replace('<locals>.', '')}"
    if inspect.isroutine(handler) or inspect.isclass(handler):
        return f"{'the class' if inspect.isclass(handler) else 'the function'} {name}"
    return f"an object of class {type(handler).__qualname__}"
