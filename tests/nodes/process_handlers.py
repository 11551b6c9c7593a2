"""Handlers that child processes import in tests."""

from __future__ import annotations

import os
import time
from typing import Any

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


def fail(data: dict[str, Any]) -> None:
    raise {"key": KeyError, "value": ValueError}[data["how"]](os.getpid())


def is_key_error(error: BaseException) -> bool:
    return isinstance(error, KeyError)
