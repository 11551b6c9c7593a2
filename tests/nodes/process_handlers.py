"""Handlers that child processes import in tests."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from d8mesh.errors import BackendUnavailableError
from d8mesh.handlers import TaskContext


def pid(data: dict[str, Any]) -> int:
    print("handlers may print", data)
    return os.getpid()


def hang(data: dict[str, Any], context: TaskContext) -> None:
    context.emit("begun")
    time.sleep(float(data.get("seconds", 600)))


def die(data: dict[str, Any]) -> None:
    del data
    os._exit(7)


async def coroutine(data: dict[str, Any]) -> object:
    return data["x"]


class Odd(BaseException):
    """None of Python's own."""


def raises(data: dict[str, Any]) -> object:
    kinds: dict[str, BaseException] = {
        "exit": SystemExit("gone"),
        "interrupt": KeyboardInterrupt(),
        "generator": GeneratorExit(),
        "odd": Odd("odd"),
        "value": ValueError("bad"),
    }
    raise kinds[data["how"]]


def outlived(data: dict[str, Any]) -> None:
    """Be killed while a process that was forked lives on, with all that was open."""
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def crowd(data: dict[str, Any], context: TaskContext) -> None:
    """Start another program, and a fork, and hang."""
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    fork = os.fork()
    if fork == 0:
        time.sleep(600)
        os._exit(0)
    Path(data["pids"]).write_text(f"{os.getpid()} {program.pid} {fork}", "utf-8")
    context.emit("begun")
    time.sleep(600)


def prints(data: dict[str, Any]) -> str:
    """Write to standard output in all ways, and read standard input."""
    print("printed")
    os.write(1, b"\x00\x00\x00\x01\xc1 written\n" * 1000)
    subprocess.run([sys.executable, "-c", "print('by a program')"], check=True)
    return sys.stdin.read()


def closes_all(data: dict[str, Any]) -> int:
    os.closerange(0, 4096)
    return 1


def forks(data: dict[str, Any]) -> str:
    """Return twice."""
    os.fork()
    return "both"


def crashes(data: dict[str, Any]) -> None:
    ctypes.string_at(0)


def leaves_a_thread(data: dict[str, Any], context: TaskContext) -> str:
    def go_on() -> None:
        while True:
            context.emit("left over")
            time.sleep(0.001)

    threading.Thread(target=go_on, daemon=True).start()
    return "left"


def leaves_a_flood(path: str, context: TaskContext) -> str:
    """End; a thread goes on emitting, and makes a file when that was much."""

    def go_on() -> None:
        time.sleep(0.1)  # the attempt has ended
        for _ in range(2000):
            context.emit("x" * 1000)
        Path(path).touch()

    threading.Thread(target=go_on, daemon=True).start()
    return "left"


class Faceless(Exception):
    """Its class is nobody's business."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("no class")


class _Refusing(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class Nameless(Exception, metaclass=_Refusing):
    """Its name neither."""


def faceless(data: dict[str, Any]) -> None:
    raise (Faceless if data["name"] == "Faceless" else Nameless)("seen")


def down(data: dict[str, Any]) -> None:
    raise BackendUnavailableError("HTTP 503 from ollama")


def tells(data: dict[str, Any], context: TaskContext) -> str:
    """Emit until somebody has heard it."""
    deadline = time.monotonic() + 30
    while not Path(data["heard"]).exists() and time.monotonic() < deadline:
        context.emit("own")
        time.sleep(0.01)
    return "told"


def leaves_or_tells(data: dict[str, Any], context: TaskContext) -> str:
    """Both in one function, so that they share a process."""
    return (leaves_a_thread if "leaves" in data else tells)(data, context)


def emits(data: dict[str, Any], context: TaskContext) -> str:
    """Emit from many threads at once, more than a pipe holds."""
    chunk = "x" * int(data["size"])

    def emit() -> None:
        for _ in range(int(data["count"])):
            context.emit(chunk)

    threads = [threading.Thread(target=emit) for _ in range(int(data["threads"]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return "all"


def emits_what_is_no_json(data: dict[str, Any], context: TaskContext) -> None:
    context.emit({"a": {1: 2}})


def decorated(handler: Any) -> Any:
    @functools.wraps(handler)
    def wrapper(data: dict[str, Any]) -> object:
        return handler(data)

    return wrapper


wrapped = decorated(pid)
cached = functools.cache(decorated)


@decorated
def wrapped_in_place(data: dict[str, Any]) -> int:
    return os.getpid()


class Tool:
    """Handlers in a class."""

    def method(self, data: dict[str, Any]) -> None: ...

    def __call__(self, data: dict[str, Any]) -> None: ...

    @staticmethod
    def static(data: dict[str, Any]) -> None: ...

    @classmethod
    def of_class(cls, data: dict[str, Any]) -> None: ...


class SubTool(Tool):
    """Has the class method of the other."""


tool = Tool()


def fail(data: dict[str, Any]) -> None:
    raise {"key": KeyError, "value": ValueError}[data["how"]](os.getpid())


def is_key_error(error: BaseException) -> bool:
    return isinstance(error, KeyError)


def where_placed(data: dict[str, Any], context: TaskContext) -> list[object]:
    place = context.placement
    assert place is not None
    return [os.getpid(), place.service, place.model, place.waiting, place.options]
