"""Pulls the configured default model where this machine's own Ollama lacks it, with its progress.

The worker offers meanwhile what is there. A pull that fails, as before the network is up, is tried
again after a pause that grows.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Final

from d8mesh.backends.services import Service
from d8mesh.backends.services.changes import pull_model
from d8mesh.core.protocol.model_names import matching
from d8mesh.errors import BackendError, D8Error, TaskCancelledError
from d8mesh.processes.pull_progress import pull_view
from d8mesh.words import tr, translated

#: After a pull that failed, and each time twice as long: a network that comes up with the machine
#: is there in seconds, a registry that is down in minutes.
PULL_AGAIN_S: Final = 10.0
PULL_AGAIN_MOST_S: Final = 600.0


class ModelFetch:
    """Pulls one model, if it is missing; at one service.

    Args:
        model: its name; None: nothing is to be pulled.
        tell: says a finished line to people.
        again_s: the first pause after a failure.

    Thread: any.
    """

    def __init__(
        self, model: str | None, *, tell: Callable[[str], None], again_s: float = PULL_AGAIN_S
    ) -> None:
        self._model, self._tell, self._again_s = model, tell, again_s
        self._stop = threading.Event()
        #: ends a pause
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._service: Service | None = None
        self._lock = threading.Lock()

    def seen(self, service: Service) -> bool:
        """Begin to pull if this Ollama of this machine lacks the model; only the first time.

        Returns:
            Whether it is being pulled there.
        """
        name, seen = self._model, service.seen
        if name is None or not (seen.url and service.is_local and service.managed is not None):
            return False
        if service.has(name) is not None or matching(name, seen.unfit) is not None:
            return False
        with self._lock:
            if self._thread is not None or self._stop.is_set():
                self._wake.set()  # it is there again, or offers something else
                return service is self._service
            self._service = service
            self._thread = threading.Thread(
                target=self._pull, args=(service, name), name="pull", daemon=True
            )
            self._thread.start()
        return True

    def close(self, wait_s: float) -> None:
        """Stop pulling; what has come stays."""
        self._stop.set()
        self._wake.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(wait_s)

    def _pull(self, service: Service, name: str) -> None:
        self._tell(tr("DEEPSEEK_MODEL={model} is not installed: pulling it", model=name))
        told, pause_s = "", self._again_s
        while not self._stop.is_set() and service.has(name) is None:
            self._wake.clear()
            try:
                self._pull_once(service, name)
            except TaskCancelledError:
                return
            except BackendError as error:
                told = told or self._fails(
                    name, error, tr("; it is tried again, less and less often")
                )
                self._wake.wait(pause_s)
                pause_s = min(2 * pause_s, PULL_AGAIN_MOST_S)
            except D8Error as error:
                self._fails(name, error)
                return
            else:
                self._tell(tr("{model} is installed", model=name))
                return

    def _pull_once(self, service: Service, name: str) -> None:
        with contextlib.closing(pull_view(name, tell=self._tell)) as view:
            pull_model(service, name, view.show, self._stop.is_set)

    def _fails(self, name: str, error: D8Error, more: str = "") -> str:
        told = tr("{model} could not be pulled: {why}", model=name, why=translated(str(error)))
        self._tell(told + more)
        return told
