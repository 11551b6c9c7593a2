"""A mesh with language models for the tests of the doors: an orchestrator, workers, stand-ins.

All of them real processes on loopback, but for the stand-in Ollamas, which are threads of the
test: their faults are switched with `OllamaStandin.fault`, and they tell what they saw. Quick
to start, so one for each module of tests::

    @pytest.fixture(scope="module")
    def mesh() -> Iterator[LlmMesh]:
        with llm_mesh(machine(), machine()) as made:
            yield made

`LlmMesh.mend` between two tests takes all faults away and waits until every model is offered, which
may take a minute when they failed often; a model of `LlmMesh.fresh` needs none of that.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from bench.mesh import Mesh, mesh
from d8mesh.apps.children import RunningCommand
from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import ask
from tests.end_to_end.processes import kill, until
from tests.ollama_standin import OllamaStandin
from tests.standin.calls import Answered
from tests.standin.machine import Model

#: A model for chats with tools, one that thinks, one that sees, one for gaps, one for vectors.
CHAT: Final = "m:1b"
THINKER: Final = "thinker:1b"
SEER: Final = "v:1b"
FILLER: Final = "filler:1b"
EMBEDDER: Final = "e:latest"
MODELS: Final = (
    Model(name=CHAT),
    Model(name=THINKER, can=("completion", "tools", "thinking")),
    Model(name=SEER, can=("completion", "vision")),
    Model(name=FILLER, can=("completion", "insert")),
    Model(name=EMBEDDER, can=("embedding",), family="nomic-bert"),
)
#: A silent machine costs so much in these tests.
FIRST_TOKEN_S: Final = 3.0
TOKEN_GAP_S: Final = 2.0
#: Longer than any call of a test, on a loaded machine.
PATIENCE_S: Final = 60.0
NONE: Final[Mapping[str, str]] = MappingProxyType({})


def machine(*, fresh: int = 0, **more: Any) -> OllamaStandin:
    """Return a stand-in with `MODELS`, of which `CHAT` is loaded; `more`: of its `Settings`.

    Args:
        fresh: how many models it has beside, for `LlmMesh.fresh`.
    """
    settings: dict[str, Any] = {
        "models": MODELS,
        "loaded": [CHAT],
        "tokens_per_s": 200,
        "max_loaded": 3 + fresh,
        **more,
    }
    models = [*settings.pop("models"), *(Model(name=fresh_name(n)) for n in range(fresh))]
    return OllamaStandin(models=models, **settings)


def fresh_name(n: int) -> str:
    """Return the name of a model that is there for one test."""
    return f"fresh{n}:1b"


class LlmMesh:
    """The mesh, as clients on this machine see it.

    Attributes:
        url: of the orchestrator, where all doors are.
        standins: the machines, in the order given.
        workers: their workers, in the same order.
        running: the processes.
    """

    def __init__(self, running: Mesh) -> None:
        self.running, self.url = running, running.url
        self.standins: list[OllamaStandin] = []
        self.workers: list[RunningCommand] = []
        self._fresh = 0

    def fresh(self) -> str:
        """Return a model that no test has used: what a fault leaves is left at its model."""
        self._fresh += 1
        return fresh_name(self._fresh - 1)

    def add(
        self, *standins: OllamaStandin, name: str = "", settings: Mapping[str, str] = NONE
    ) -> RunningCommand:
        """Start a worker that reaches these; see `await_models`."""
        first, *others = standins
        given = {
            "WORKER_STATUS_PORT": str(free_ports(1)[0]),
            "WORKER_ID": name or f"worker-{len(self.workers) + 1}",
            "DEEPSEEK_BASE_URL": first.url,
            "D8_OLLAMA_HOSTS": ",".join(each.url for each in others),
            "D8_FIRST_TOKEN_S": f"{FIRST_TOKEN_S:g}",
            "D8_TOKEN_GAP_S": f"{TOKEN_GAP_S:g}",
            **settings,
        }
        child = self.running.children.start("worker", "worker", settings=given)
        self.standins += standins
        self.workers.append(child)
        return child

    def await_models(self) -> None:
        """Wait until every stand-in's models are offered and none is paused."""
        until(self._are_offered, "all models")

    def _are_offered(self) -> bool:
        body = ask(self.url, "/api/models")
        known = [each for each in body["services"] if each["models"] and each["state"] == "online"]
        places = [place for model in body["models"] for place in model["places"]]
        return len(known) == len(self.standins) and not any(each["paused"] for each in places)

    def mend(self) -> None:
        """Have no fault any more, all counters at 0, and every model offered."""
        for standin in self.standins:
            standin.mend()
        self.await_models()
        for standin in self.standins:
            standin.reset()

    def kill_worker(self, index: int) -> None:
        """End a worker as a power failure would; it is not started again."""
        kill(self.workers[index].process.pid)

    # ------------------------------------------------------------------------- asking

    def call(
        self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] = NONE
    ) -> Answered:
        """Send a request as it is; return all of its answer. What is no bytes is sent as JSON."""
        with self.opened(method, path, body, headers=headers) as response:
            told = {name.lower(): value for name, value in response.getheaders()}
            return Answered(response.status, told, response.read())

    def get(self, path: str, **more: Any) -> Answered:
        """Ask for something."""
        return self.call("GET", path, **more)

    def post(self, path: str, body: object, **more: Any) -> Answered:
        """Send something."""
        return self.call("POST", path, body, **more)

    @contextmanager
    def opened(
        self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] = NONE
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and have its response, unread; the end of the `with` hangs up."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE_S)
        content, kind = body, {}
        if not (body is None or isinstance(body, bytes)):
            content, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        try:
            connection.request(method, path, content, {**kind, **headers})  # type: ignore[arg-type]
            response = connection.getresponse()
            yield response
            response.close()
        finally:
            connection.close()

    # ------------------------------------------------------------------------ looking

    def tasks(self) -> list[dict[str, Any]]:
        """Return the tasks of the mesh as REST lists them, the newest first."""
        return list(ask(self.url, "/api/tasks")["tasks"])

    def models(self) -> dict[str, Any]:
        """Return what REST tells of the models."""
        return dict(ask(self.url, "/api/models"))


@contextmanager
def llm_mesh(*machines: OllamaStandin, settings: Mapping[str, str] = NONE) -> Iterator[LlmMesh]:
    """Start an orchestrator, and a worker for each of these machines; end all after.

    Args:
        settings: of every process, over those of the tests.
    """
    with ExitStack() as stack:
        for each in machines:
            stack.enter_context(each)
        made = LlmMesh(stack.enter_context(mesh(workers=0, settings=settings)))
        for each in machines:
            made.add(each)
        made.await_models()
        yield made
