"""Starts ``ollama serve`` where this machine has the program and no Ollama of its own answers.

It ends with the worker. Ollamas of other machines are theirs to start.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from d8mesh.backends.ollama import DEFAULT_URLS
from d8mesh.config import Config
from d8mesh.core.protocol.addresses import is_loopback
from d8mesh.edge.child.program import Program
from d8mesh.edge.network import first_reachable, own_names
from d8mesh.words import tr, translated

#: How often it is looked whether an Ollama answers, and is tried to start one.
SERVE_LOOK_S: Final = 5.0
#: After a start that failed, and each time twice as long.
AGAIN_S: Final = 10.0
AGAIN_MOST_S: Final = 600.0
#: How long it may take until it listens.
SERVE_LISTEN_S: Final = 30.0
LISTEN_LOOK_S: Final = 0.1
#: A program that listens on this machine accepts at once.
ACCEPT_S: Final = 1.0
#: What Config has where OLLAMA_HOST is not set.
UNSET_LISTEN: Final = Config().ollama_listen
#: Ollama's own port, where OLLAMA_HOST names none.
OLLAMA_PORT: Final = 11_434


@dataclass(frozen=True, slots=True)
class Serving:
    """Where it would listen, and where one may be already."""

    listen: str
    looked_at: tuple[tuple[str, int], ...]


def serving_of(config: Config) -> Serving | str:
    """Return where ``ollama serve`` is to listen, or why it is not started.

    It listens on OLLAMA_HOST. Where that is not set it follows DEEPSEEK_BASE_URL, and keeps to
    this machine if the worker does.
    """
    urls = (config.ollama_url,) if config.ollama_url else DEFAULT_URLS
    places = [_place_of(url) for url in urls]
    own = own_names()
    local = tuple((h, p) for h, p in places if is_loopback(h) or h in own)
    if not local:
        return f"DEEPSEEK_BASE_URL={config.ollama_url} is another machine"
    listen = config.ollama_listen
    if listen == UNSET_LISTEN and config.ollama_url:
        host, port = local[0]
        listen = f"{host}:{port}"
    elif listen == UNSET_LISTEN and is_loopback(config.web_host):
        listen = f"{config.web_host}:{local[0][1]}"
    if _place_of(listen if "://" in listen else f"http://{listen}")[1] not in {p for _, p in local}:
        looked = " or ".join(urls)
        return f"OLLAMA_HOST={listen} is not where this worker looks for it ({looked})"
    return Serving(listen, local)


class OllamaServe:
    """Keeps an ``ollama serve`` running while nobody else does.

    Args:
        logs: the folder that its output goes to.
        tell: says a finished line to people.
        on_started: called when one that was started here listens.

    Thread: `run` on its own; `close` any.
    """

    def __init__(
        self,
        config: Config,
        *,
        logs: Path,
        tell: Callable[[str], None],
        on_started: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._log = config, logs / "ollama.log"
        self._tell, self._on_started = tell, on_started
        self._program: Program | None = None
        self._again_s, self._said = AGAIN_S, ""
        self._lock = threading.Lock()
        self._is_closed = False

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set."""
        while not stop.is_set():
            stop.wait(self.look(stop))

    def look(self, stop: threading.Event) -> float:
        """Start one if none answers; return in how many seconds to look again."""
        path = shutil.which("ollama") if self._config.ollama_serve else None
        if path is None or self._is_running():
            return SERVE_LOOK_S
        serving = serving_of(self._config)
        if isinstance(serving, str):
            self._say_once(tr("`ollama serve` is not started: {why}", why=translated(serving)))
            return SERVE_LOOK_S
        if _answers(serving):
            return SERVE_LOOK_S
        return self._start(path, serving, stop)

    def close(self) -> None:
        """End the one that was started here."""
        with self._lock:
            self._is_closed = True
            program, self._program = self._program, None
        if program is not None:
            program.close()

    def _is_running(self) -> bool:
        program = self._program
        if program is not None and not program.is_running:
            self._tell_ended(program)
            program.close()
            self._program = None
        return self._program is not None

    def _start(self, path: str, serving: Serving, stop: threading.Event) -> float:
        try:
            with self._lock:
                if self._is_closed:
                    return SERVE_LOOK_S
                env = {"OLLAMA_HOST": serving.listen}
                program = self._program = Program([path, "serve"], env=env, log=self._log)
        except OSError as error:
            self._say_once(tr("`ollama serve` could not be started: {why}", why=error))
            return self._later()
        waited_s = 0.0
        while program.is_running and waited_s < SERVE_LISTEN_S and not stop.wait(LISTEN_LOOK_S):
            waited_s += LISTEN_LOOK_S
            if _answers(serving):
                self._tell(
                    tr(
                        "no Ollama was running: started `ollama serve` on {place}, which ends with "
                        "this worker (its output: {file})",
                        place=serving.listen,
                        file=self._log,
                    )
                )
                self._again_s, self._said = AGAIN_S, ""
                self._on_started()
                return SERVE_LOOK_S
        if program.is_running and not stop.is_set():
            seconds = f"{SERVE_LISTEN_S:.0f}"
            self._say_once(tr("`ollama serve` does not listen after {seconds} s", seconds=seconds))
        return SERVE_LOOK_S if self._is_running() else self._later()

    def _tell_ended(self, program: Program) -> None:
        why = program.last_line() or "no word"
        text = tr("`ollama serve` ended (code {code}): {why}", code=program.exit_code, why=why)
        self._say_once(text)

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._tell(text)

    def _later(self) -> float:
        pause_s, self._again_s = self._again_s, min(2 * self._again_s, AGAIN_MOST_S)
        return pause_s


def _answers(serving: Serving) -> bool:
    return first_reachable(serving.looked_at, deadline_s=ACCEPT_S) is not None


def _place_of(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        return parts.hostname or "0.0.0.0", parts.port or OLLAMA_PORT
    except ValueError:  # OLLAMA_HOST may be anything
        return "", 0
