"""The routers of LLM requests nearest to d8mesh, as their documentation starts them.

Each has an environment of its own (`peers.environment`) and stands before the same machines. Ollama
Herd announces itself over multicast: it runs only where the network is loopback alone (`alone`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.peers.environment import environment
from bench.processes import kill_tree
from d8mesh.apps.demo import free_ports
from d8mesh.errors import D8Error

HERD: Final = "Ollama Herd"
LITELLM: Final = "LiteLLM proxy"
#: What pip installs for each.
REQUIRES: Final[Mapping[str, tuple[str, ...]]] = {
    HERD: ("ollama-herd",),
    LITELLM: ("litellm[proxy]",),
}
#: LiteLLM imports for ten seconds; Herd's nodes look around every five.
START_S: Final = 90.0
LOOK_S: Final = 0.2
#: Herd has heard of all its nodes' models by then.
SETTLE_S: Final = 6.0
#: Nothing is told to anybody outside, and no list is fetched.
_QUIET: Final = {
    "FLEET_TELEMETRY": "0",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True, slots=True)
class Door:
    """Where requests go: `path` is Ollama's chat, or OpenAI's."""

    name: str
    url: str
    path: str
    key: str = ""

    @property
    def is_ollama(self) -> bool:
        """Whether it speaks as an Ollama does."""
        return self.path == "/api/chat"


@contextlib.contextmanager
def herd(machines: Sequence[str], model: str) -> Iterator[Door]:
    """Run its router and a node for each machine."""
    programs = environment(REQUIRES[HERD]).parent
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with _folder() as folder, contextlib.ExitStack() as stack:
        command = [str(programs / "herd"), "--host", "127.0.0.1", "--port", str(port)]
        stack.enter_context(_running([*command, "--log-level", "WARNING"], folder / "router"))
        for n, machine in enumerate(machines):
            node = [str(programs / "herd-node"), "--node-id", f"n{n}", "--ollama-host", machine]
            stack.enter_context(_running([*node, "--router-url", url], folder / f"n{n}"))
        _await_answer(f"{url}/api/tags", {}, model)
        time.sleep(SETTLE_S)
        yield Door(HERD, url, "/api/chat")


@contextlib.contextmanager
def litellm(machines: Sequence[str], model: str) -> Iterator[Door]:
    """Run its proxy, one worker, no database, two retries."""
    programs = environment(REQUIRES[LITELLM]).parent
    (port,) = free_ports(1)
    url, key = f"http://127.0.0.1:{port}", f"sk-{secrets.token_hex(24)}"
    entries = "".join(
        f"  - model_name: {model}\n    litellm_params:\n"
        f"      model: ollama_chat/{model}\n      api_base: {machine}\n"
        for machine in machines
    )
    text = f"model_list:\n{entries}router_settings:\n  num_retries: 2\n"
    with _folder() as folder:
        settings = folder / "config.yaml"
        settings.write_text(f"{text}general_settings:\n  master_key: {key}\n", "utf-8")
        command = [str(programs / "litellm"), "--config", str(settings)]
        with _running([*command, "--host", "127.0.0.1", "--port", str(port)], folder / "home"):
            _await_answer(f"{url}/v1/models", {"Authorization": f"Bearer {key}"}, model)
            yield Door(LITELLM, url, "/v1/chat/completions", key)


def alone(arguments: Sequence[str], *, timeout_s: float) -> str:
    """Run a module of ours where there is no network but loopback; return what it prints.

    Raises:
        D8Error: this system makes no such place for us, or the module failed.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise D8Error("other routers announce themselves: measured only on Linux, as root")
    inside = (
        'ip link set lo up multicast on && ip route add 224.0.0.0/4 dev lo && exec "$0" -m "$@"'
    )
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", inside, sys.executable, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        timeout=timeout_s,
    )
    if done.returncode:
        raise D8Error(f"{arguments[0]} ended with {done.returncode}")
    return done.stdout


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="d8-router-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def _running(command: list[str], home: Path) -> Iterator[None]:
    """Run a program whose home is a folder of its own; what it prints goes to a file there."""
    home.mkdir()
    log = home / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=home,
            env={**os.environ, **_QUIET, "HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    except D8Error as error:
        said = " / ".join(log.read_text("utf-8", "replace").splitlines()[-3:])
        raise D8Error(f"{error}: {said}") from error
    finally:
        with contextlib.suppress(Exception):
            kill_tree(process.pid)
        process.wait()


def _await_answer(url: str, headers: Mapping[str, str], model: str) -> None:
    """Wait until it lists the model."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        request = urllib.request.Request(url, headers=dict(headers))
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            if model.encode() in answer.read():
                return
        time.sleep(LOOK_S)
    raise D8Error(f"{url} did not list {model} within {START_S:.0f} s")
