r"""A stand-in Ollama: the real HTTP API at the speed of a machine of your choice, without models.

For tests (``with OllamaStandin(loaded=["qwen2.5:3b"]) as standin``) and by hand::

    python tests/ollama_standin.py --port 7100 --tokens-per-s 20 --speed 0.25
    python tests/ollama_standin.py --models qwen3:4b=2.6 nomic-embed-text=0.3 \
        --embedders nomic-embed-text bge-m3 --library llama3:8b=4.7 bge-m3=1.2 --pull-mb-per-s 500

Sizes are in GB. What can be pulled is in its library or was installed, as with Ollama's own.

It loads, evicts, reloads and queues as Ollama does, paces its tokens, sees when a client leaves,
and has each fault of `tests.standin.faults` at will: by `OllamaStandin.fault`, or
``curl -d '{"fault": {"kind": "stall", "after": 3}}' localhost:7100/_standin``.
``GET /_standin`` tells what it has seen.

A token costs it some 30 µs of processor time: 10,000 tokens/s (200 streams of 50/s) take a third of
a core. Where speeds are measured, run it as a program: in a test's own process it shares the
interpreter with all else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

if __package__ in (None, ""):  # run as a program
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.standin.asked import full_name
from tests.standin.counters import Counters
from tests.standin.faults import EVERY_MODEL, Kind
from tests.standin.http import Connection
from tests.standin.machine import Model
from tests.standin.ollama import MODELS, Ollama, Settings

LOOPBACK: Final = "127.0.0.1"
#: Connections that may come at the same instant.
BACKLOG: Final = 2048
#: Turns of the event loop until a connection that was accepted is known.
ACCEPT_TURNS: Final = 5
#: How long a call from another thread may take.
CALL_S: Final = 20.0
LOOK_S: Final = 0.005
#: What the program can pull if it is not told, and how quick.
LIBRARY: Final = (
    Model(name="llama3:8b", size=4_700_000_000),
    Model(name="llama3.2:1b", size=1_300_000_000),
    Model(name="qwen3:4b", size=2_600_000_000),
    Model(name="bge-m3:latest", size=1_200_000_000, can=("embedding",), family="bert"),
)
PULL_MB_PER_S: Final = 500.0


class OllamaStandin:
    """One stand-in on loopback, in a thread of its own; a context manager.

    Args:
        port: 0 for a free one; the same again after `stop` and `start`.
        models: installed ones, as `Model` or as names of models for chats.
        settings: see `Settings`.
    """

    def __init__(
        self, *, port: int = 0, models: Sequence[Model | str] = MODELS, **settings: Any
    ) -> None:
        made = [each if isinstance(each, Model) else Model(name=each) for each in models]
        self._settings = Settings(models=made, **settings)
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._ollama: Ollama | None = None

    def __enter__(self) -> OllamaStandin:
        self._thread.start()
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S)
        self._loop.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Listen; with nothing in memory but what is `loaded` at the start, and counters at 0."""
        self._call(self._start())

    def stop(self) -> None:
        """Be gone as a machine that is switched off: all connections break."""
        self._call(self._stop())

    @property
    def ollama(self) -> Ollama:
        """What the event loop owns: look, do not touch."""
        assert self._ollama is not None
        return self._ollama

    @property
    def counters(self) -> Counters:
        """What was seen since the start or the last `reset`."""
        return self.ollama.counters

    @property
    def chats(self) -> list[Any]:
        """The bodies of all chat requests."""
        return [body for path, _, body in list(self.counters.bodies) if path == "/api/chat"]

    @property
    def reloads(self) -> int:
        """Loads of models that were loaded, for the sake of other options."""
        return self.ollama.machine.reloads.total()

    @property
    def running(self) -> int:
        """Requests that hold a slot now."""
        return sum(each.running for each in list(self.ollama.machine.residents))

    @property
    def loaded(self) -> list[str]:
        """Models that are in memory, by name."""
        return [each.name for each in list(self.ollama.machine.residents) if not each.is_loading]

    def fault(
        self,
        kind: Kind | str,
        model: str = EVERY_MODEL,
        *,
        after: int = 2,
        times: int | None = None,
    ) -> None:
        """Have a fault from the next request on.

        Args:
            kind: of `Kind`; ``ok``: none.
            model: its name with tag; `EVERY_MODEL`: all that have no fault of their own.
            after: pieces that come before (`STALL`, `CUT`, `NO_DONE`, `ERROR_LINE`).
            times: requests that it meets; None: all.
        """
        told = {"kind": str(kind), "model": model, "after": after, "times": times}
        self.change(fault=told)

    def mend(self) -> None:
        """Have no fault any more; who is stuck stays stuck."""
        self.change(mend=True)

    def reset(self) -> None:
        """Begin all counters at 0."""
        self.change(reset=True)

    def set_speed(self, speed: float) -> None:
        """Be faster or slower from the next token on."""
        self.change(settings={"speed": speed})

    def change(self, **told: Any) -> None:
        """Change what ``POST /_standin`` can change."""
        self._call(self._change(told))

    def wait_until(self, is_so: Callable[[], bool], *, within_s: float = 20.0) -> None:
        """Wait for something that the stand-in sees.

        Raises:
            TimeoutError: it did not come in time.
        """
        until = time.monotonic() + within_s
        while not is_so():
            if time.monotonic() > until:
                raise TimeoutError(f"not within {within_s:g} s; seen: {self.ollama.told()}")
            time.sleep(LOOK_S)

    async def _change(self, told: dict[str, Any]) -> None:
        self.ollama.change(told)

    async def _start(self) -> None:
        self._ollama = Ollama(self._settings)
        self._server = await serve(self._ollama, self.port, self._connections)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is None or self._ollama is None:
            return
        self._ollama.is_closing = True
        for bound in self._server.sockets:  # asyncio forgets what it accepts while it closes
            with contextlib.suppress(NotImplementedError):
                self._loop.remove_reader(bound)
        await asyncio.sleep(0)
        self._server.close()
        for _ in range(ACCEPT_TURNS):  # those that were accepted a moment ago too
            for each in list(self._connections):
                each.abort()
            await asyncio.sleep(0)
        self._server = None
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S)


async def serve(
    ollama: Ollama, port: int, connections: set[Connection], host: str = LOOPBACK
) -> asyncio.Server:
    """Listen, on loopback if nothing else is told."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: Connection(ollama.handle, connections, ollama.closed), host, port, backlog=BACKLOG
    )


def sized(text: str) -> Model:
    """Return the model that ``NAME`` or ``NAME=GB`` stands for.

    Raises:
        ValueError: it is neither.
    """
    name, is_sized, size = text.partition("=")
    if not name or (is_sized and float(size) <= 0):
        raise ValueError(text)
    return Model(name=name, size=round(float(size) * 1e9)) if is_sized else Model(name=name)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speak Ollama's API on loopback, for trying.")
    parser.add_argument("--port", type=int, default=7100)
    parser.add_argument("--host", default=LOOPBACK, help="the address to listen at")
    named = "NAME[=GB]"
    parser.add_argument("--models", nargs="+", type=sized, metavar=named, help="installed ones")
    parser.add_argument(
        "--library",
        nargs="*",
        type=sized,
        default=LIBRARY,
        metavar=named,
        help="what can be pulled",
    )
    parser.add_argument(
        "--embedders", nargs="*", default=[], metavar="NAME", help="those that cannot chat"
    )
    parser.add_argument("--pull-mb-per-s", type=float, default=PULL_MB_PER_S, help="0: at once")
    parser.add_argument("--loaded", nargs="*", default=[], metavar="NAME", help="in memory already")
    parser.add_argument("--speed", type=float, default=1.0, help="times the speeds below")
    parser.add_argument("--tokens-per-s", type=float, default=50.0, help="0: all at once")
    parser.add_argument("--prompt-tokens-per-s", type=float, default=1000.0)
    parser.add_argument("--load-s", type=float, default=0.0, help="seconds that a load takes")
    parser.add_argument("--num-parallel", type=int, default=1, help="slots of each model")
    parser.add_argument("--max-loaded", type=int, default=3, help="models in memory at once")
    parser.add_argument("--keep-alive-s", type=float, default=300.0)
    parser.add_argument("--with-parent", action="store_true", help="end with standard input")
    parser.add_argument("--fault", choices=[each.value for each in Kind], help="of every model")
    return parser.parse_args()


async def _run(options: argparse.Namespace) -> None:
    named = vars(options).copy()
    host, port, fault = named.pop("host"), named.pop("port"), named.pop("fault")
    is_child, embedders = named.pop("with_parent"), named.pop("embedders")
    named["models"] = _cast(named["models"] or MODELS, embedders)
    named["library"] = [*named["models"], *_cast(named["library"], embedders)]
    ollama = Ollama(Settings(pull_bytes_per_s=named.pop("pull_mb_per_s") * 1e6, **named))
    if fault:
        ollama.faults.put(fault)
    server = await serve(ollama, port, set(), host)
    port = server.sockets[0].getsockname()[1]
    print(f"speaking Ollama's API at http://{host}:{port}; Ctrl-C ends it", flush=True)
    if is_child:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    await server.serve_forever()


def _cast(models: Sequence[Model], embedders: Sequence[str]) -> list[Model]:
    """Return the models, those of these names as embedders."""
    names = {full_name(name) for name in embedders}
    return [
        replace(each, can=("embedding",), family="nomic-bert")
        if full_name(each.name) in names
        else each
        for each in models
    ]


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(_options()))
