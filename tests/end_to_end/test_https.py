"""An orchestrator with D8_TLS: its own nodes, clients of others, and plain HTTP at its port."""

from __future__ import annotations

import contextlib
import re
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest

from d8mesh.apps.children import Children, RunningCommand
from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import ask
from d8mesh.config import Config
from d8mesh.edge import address_file
from d8mesh.edge.transport.web_client import get_json
from d8mesh.errors import BrokerUnavailableError, ConfigError
from d8mesh.http.tls import TlsFiles, files_of, shown_fingerprint
from d8mesh.nodes.client import Client
from d8mesh.nodes.reconnector.health import broker_at
from tests.doors.llm_mesh import CHAT, machine
from tests.end_to_end.processes import until

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Secure:
    """A mesh whose REST port speaks HTTPS alone."""

    mesh: str
    folder: Path
    port: int
    tls: TlsFiles
    orchestrator: RunningCommand
    children: Children
    settings: dict[str, str]

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def config(self, folder: Path, *trusted: str) -> Config:
        """Return that of a machine which knows nothing of this one."""
        where = {"interfaces": ("127.0.0.1",), "data_dir": str(folder)}
        return Config(mesh=self.mesh, tls_trust=trusted, **where)  # type: ignore[arg-type]

    def asked(self, path: str) -> Any:
        return ask(self.url, path, trusted=[self.tls.fingerprint])

    def trusting(self) -> ssl.SSLContext:
        """Return what a program has that was given the certificate's file."""
        return ssl.create_default_context(cafile=str(self.tls.certificate))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder, mesh = tmp_path_factory.mktemp("secure"), f"tls-{secrets.token_hex(3)}"
    rest, broker, status = free_ports(3)
    settings = {
        "D8_MESH": mesh,
        "D8_DATA_DIR": str(folder),
        "D8_BROKER_PORT": str(broker),
        "FLASK_PORT": str(rest),
        "WORKER_STATUS_PORT": str(status),
        "D8_TLS": "auto",
    }
    with machine(tokens_per_s=0) as standin, Children(settings) as children:
        orchestrator = children.start("orchestrator", "orchestrator")
        children.start("worker", "worker", settings={"DEEPSEEK_BASE_URL": standin.url})
        tls = files_of(Config(data_dir=str(folder), tls="auto"))
        assert tls is not None
        made = Secure(mesh, folder, rest, tls, orchestrator, children, settings)
        until(lambda: is_there(made), "a worker that offers models")
        yield made


def is_there(made: Secure) -> bool:
    assert made.orchestrator.is_running, list(made.orchestrator.lines)
    try:
        return CHAT in str(made.asked("/api/models"))
    except (OSError, ConfigError):  # not yet
        return False
    finally:
        time.sleep(0.1)


def test_a_worker_of_this_machine_joins_and_all_say_which_certificate_it_is(
    secure: Secure,
) -> None:
    fingerprint = secure.tls.fingerprint
    assert secure.asked("/health")["tls"] == fingerprint
    written = address_file.read(secure.folder, secure.mesh)
    assert written is not None
    assert written.tls == fingerprint
    said = "\n".join(secure.orchestrator.lines)
    assert shown_fingerprint(fingerprint) in said
    assert str(secure.tls.certificate) in said
    assert f"D8_TLS_TRUST={fingerprint} ORCHESTRATOR_URL=https://" in said or "cannot reach" in said


def test_a_client_elsewhere_is_told_the_fingerprint_and_goes_in_with_it(
    secure: Secure, tmp_path: Path
) -> None:
    fingerprint = secure.tls.fingerprint
    with Client(secure.url, config=secure.config(tmp_path)) as client:
        assert not client.wait_connected(1.0)
        with pytest.raises(BrokerUnavailableError, match=f"D8_TLS_TRUST={fingerprint}"):
            client.stats(timeout=2.0)
    with Client(secure.url, config=secure.config(tmp_path, fingerprint)) as client:
        assert client.call("echo", {"n": 1}, timeout=PATIENCE_S)["output"] == {"n": 1}


def test_plain_http_is_told_where_to_ask(secure: Secure, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{secure.port}"
    told = get_json(url, "/health", (), timeout_s=PATIENCE_S, max_bytes=1000)
    assert told["code"] == "http.plain"
    with pytest.raises(BrokerUnavailableError, match=f"ask https://127.0.0.1:{secure.port}"):
        broker_at(url)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match=f"ask https://127.0.0.1:{secure.port}"):
            client.models.list()


def test_status_and_a_worker_by_url_follow(secure: Secure, tmp_path: Path) -> None:
    given = [f"--set={name}={value}" for name, value in (secure.settings | {"D8_TLS": ""}).items()]
    run = [sys.executable, "-m", "d8mesh", "status", *given]
    here = subprocess.run(run, capture_output=True, text=True, timeout=PATIENCE_S)
    assert f"at {secure.url}" in here.stdout, here.stdout + here.stderr
    (status,) = free_ports(1)
    elsewhere = {
        "D8_DATA_DIR": str(tmp_path),
        "D8_TLS": "",
        "ORCHESTRATOR_URL": secure.url,
        "D8_TLS_TRUST": shown_fingerprint(secure.tls.fingerprint),
        "WORKER_STATUS_PORT": str(status),
    }
    child = secure.children.start("elsewhere", "worker", settings=elsewhere)
    until(lambda: any(" joined " in line for line in child.lines), str(list(child.lines)))
    child.close_input()
    child.wait(PATIENCE_S)


def test_clients_of_others_need_the_certificates_file(secure: Secure) -> None:
    url = secure.url
    http_client = openai.DefaultHttpxClient(verify=secure.trusting())
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", http_client=http_client) as client:
        messages: Any = [{"role": "user", "content": "say 5 words"}]
        stream = client.chat.completions.create(model=CHAT, messages=messages, stream=True)
        assert sum(1 for _ in stream) >= 4
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as stranger:
        with pytest.raises(openai.APIConnectionError):
            stranger.models.list()
    mine = ollama.Client(host=url, verify=secure.trusting())
    with contextlib.closing(mine):
        assert mine.chat(CHAT, messages).message.content


@pytest.mark.parametrize(
    ("files", "told"),
    [("nowhere.pem,key.pem", "nowhere.pem: No such file"), ("nonsense", "expected auto, or")],
)
def test_files_that_cannot_be_used_end_the_start_with_a_sentence(
    files: str, told: str, tmp_path: Path
) -> None:
    rest, broker = free_ports(2)
    settings = {
        "D8_DATA_DIR": str(tmp_path),
        "D8_TLS": files,
        "FLASK_PORT": str(rest),
        "D8_BROKER_PORT": str(broker),
    }
    with Children(settings) as children:
        child = children.start("orchestrator", "orchestrator")
        assert child.wait(PATIENCE_S) == 2
    assert re.search(told, "\n".join(child.lines)), list(child.lines)
    assert "Traceback" not in "\n".join(child.lines)
