"""`ollama serve` is started where nobody else does it, and ends with whoever started it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from d8mesh.apps.demo import free_ports
from d8mesh.config import Config
from d8mesh.edge.network import first_reachable
from d8mesh.processes.ollama_serve import AGAIN_S, SERVE_LOOK_S, OllamaServe, Serving, serving_of
from tests.end_to_end.processes import until
from tests.fake_ollama import put_on_path
from tests.ollama_server import OllamaServer


class Scene:
    """What starts Ollamas, on a PATH with the fake one, and what it says."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.lines: list[str] = []
        self.started = threading.Event()
        self.stop = threading.Event()
        self.serve = OllamaServe(
            config, logs=folder, tell=self.lines.append, on_started=self.started.set
        )

    def look(self) -> float:
        return self.serve.look(self.stop)


def is_listening(port: int) -> bool:
    return first_reachable([("127.0.0.1", port)], deadline_s=1.0) is not None


def config_at(port: int, **more: object) -> Config:
    url = f"http://127.0.0.1:{port}"
    return Config(ollama_url=url, web_host="127.0.0.1", **more)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", put_on_path(tmp_path / "programs"))
    return tmp_path


def test_it_is_started_where_the_worker_looks_and_ends_with_it(path: Path) -> None:
    (port,) = free_ports(1)
    scene = Scene(path, config_at(port))
    assert scene.look() == SERVE_LOOK_S
    assert scene.started.is_set()
    assert is_listening(port)
    (line,) = scene.lines
    assert line.startswith(f"no Ollama was running: started `ollama serve` on 127.0.0.1:{port}")
    assert str(path / "ollama.log") in line
    assert scene.look() == SERVE_LOOK_S
    scene.serve.close()
    assert not is_listening(port)
    assert scene.look() == SERVE_LOOK_S
    assert not is_listening(port)


def test_one_that_answers_already_is_left_alone(path: Path) -> None:
    with OllamaServer() as there:
        scene = Scene(path, config_at(there.port))
        assert scene.look() == SERVE_LOOK_S
    assert (scene.lines, scene.started.is_set()) == ([], False)


def test_it_says_why_it_ended_and_tries_again_ever_more_seldom(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_FAILS", "Error: no space left on device")
    (port,) = free_ports(1)
    scene = Scene(path, config_at(port))
    assert [scene.look(), scene.look()] == [AGAIN_S, 2 * AGAIN_S]
    assert scene.lines == ["`ollama serve` ended (code 1): Error: no space left on device"]
    monkeypatch.delenv("FAKE_OLLAMA_FAILS")
    scene.look()
    assert is_listening(port)
    scene.serve.close()


def test_without_the_program_or_where_it_is_not_wanted_nothing_is_started(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    unwanted = Scene(path, config_at(port, ollama_serve=False))
    unwanted.look()
    monkeypatch.setenv("PATH", str(path / "nothing"))
    without = Scene(path, config_at(port))
    without.look()
    assert (unwanted.lines, without.lines, is_listening(port)) == ([], [], False)


def test_another_machines_is_its_own_to_start(path: Path) -> None:
    scene = Scene(path, Config(ollama_url="http://10.9.9.9:7100"))
    for _ in range(2):
        scene.look()
    assert scene.lines == [
        "`ollama serve` is not started: DEEPSEEK_BASE_URL=http://10.9.9.9:7100 is another machine"
    ]


@pytest.mark.parametrize(
    ("settings", "listen"),
    [
        ({}, "0.0.0.0:7100"),
        ({"FLASK_HOST": "127.0.0.1"}, "127.0.0.1:7100"),
        ({"OLLAMA_HOST": "127.0.0.1:11434"}, "127.0.0.1:11434"),
        ({"OLLAMA_HOST": ":11434"}, ":11434"),
        ({"OLLAMA_HOST": "http://0.0.0.0"}, "http://0.0.0.0"),
        ({"DEEPSEEK_BASE_URL": "localhost:8000"}, "localhost:8000"),
    ],
)
def test_it_listens_where_ollamas_own_variable_says(settings: dict[str, str], listen: str) -> None:
    serving = serving_of(Config.from_env(settings))
    assert isinstance(serving, Serving)
    assert serving.listen == listen


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "http://[", "nonsense:port"])
def test_a_place_where_nobody_looks_is_not_listened_on(host: str) -> None:
    assert f"OLLAMA_HOST={host} is not where" in str(serving_of(Config(ollama_listen=host)))


@pytest.mark.skipif(sys.platform == "win32", reason="a job object does it there")
def test_it_ends_with_a_holder_that_is_killed(path: Path) -> None:
    (port,) = free_ports(1)
    code = (
        "import sys, threading; from pathlib import Path; from d8mesh.config import Config\n"
        "from d8mesh.processes.ollama_serve import OllamaServe\n"
        f"config = Config(ollama_url='http://127.0.0.1:{port}')\n"
        f"OllamaServe(config, logs=Path({str(path)!r}), tell=print).look(threading.Event())\n"
        "threading.Event().wait()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code])
    try:
        until(lambda: is_listening(port), "the Ollama to listen")
    finally:
        holder.kill()
        holder.wait()
    end = time.monotonic() + 30
    while is_listening(port):
        assert time.monotonic() < end
        time.sleep(0.05)
