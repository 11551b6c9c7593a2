"""What leaves the LAN is known by the address, whoever runs the service there."""

from __future__ import annotations

import socket

import pytest

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.ollama import backend_of
from d8mesh.backends.openai import servers_of
from d8mesh.backends.reach import leaves_lan
from d8mesh.backends.services import PoolListener, ServicePool
from d8mesh.config import Config
from d8mesh.core.protocol.chat import ChatRequest
from d8mesh.core.protocol.messages import OfferedService
from d8mesh.errors import BackendUnavailableError
from tests.cloud_servers import CloudServer
from tests.ollama_server import OllamaServer

OWN = frozenset({"box", "box.local", "192.168.1.5", "2001:db8:1:2::5", "203.0.113.9"})


@pytest.mark.parametrize(
    ("url", "leaves"),
    [
        ("http://localhost:7100", False), ("http://127.0.0.1:1", False), ("http://[::1]:1", False),
        ("http://10.1.2.3:8000/v1", False), ("http://192.168.1.9", False), ("", False),
        ("http://[fd00::9]:1", False), ("http://box.local:1", False),
        ("http://203.0.113.9:1", False), ("http://[2001:db8:1:2::77]:1", False),
        ("http://[2001:db8:1:3::77]:1", True), ("https://8.8.8.8/v1", True),
        ("http://172.32.0.1", True), ("http://100.64.0.1", True), ("http://169.254.169.254", True),
    ],
)  # fmt: skip
def test_an_address_leaves_the_lan_unless_it_is_of_it(url: str, leaves: bool) -> None:
    assert leaves_lan(url, own=OWN) is leaves


@pytest.mark.parametrize(
    ("addresses", "leaves"),
    [
        (["10.0.0.8"], False), (["8.8.8.8"], True), (["10.0.0.8", "8.8.8.8"], True), ([], False),
        (["10.0.0.8", "2001:db8:1:2::8"], False), (["fe80::1%eth0"], False),
    ],
)  # fmt: skip
def test_a_name_leaves_the_lan_if_one_of_its_addresses_does(
    addresses: list[str], leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_for(addresses, monkeypatch)
    assert leaves_lan("https://llm.example/v1", own=OWN) is leaves


def stand_for(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every name stand for these addresses."""

    def found(host: object, port: object, *args: object, **more: object) -> list[object]:
        if not addresses:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", found)


def test_a_server_outside_is_cloud_and_is_offered_only_where_the_worker_allows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with CloudServer("vllm") as server:
        monkeypatch.setattr("d8mesh.backends.openai.service.leaves_lan", lambda url: True)
        monkeypatch.setattr("d8mesh.backends.openai.endpoint.leaves_lan", lambda url: True)
        for cloud, is_up in (("never", False), ("overflow", True)):
            config = Config(openai_hosts=(server.url,), openai_key=server.key, cloud=cloud)
            (backend,) = servers_of(config)
            seen = backend.probe()
            assert (seen.is_up, backend.is_cloud) == (is_up, True)
            assert is_up or "is outside this LAN" in seen.reason


def test_an_ollama_outside_is_cloud_and_is_offered_only_where_the_worker_allows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("d8mesh.backends.ollama.leaves_lan", lambda url: True)
    with OllamaServer() as server:
        for cloud, is_up in (("never", False), ("overflow", True)):
            backend = backend_of(Config(ollama_url=server.url, cloud=cloud))
            seen = backend.probe()
            assert (seen.is_up, backend.is_cloud) == (is_up, True)
            assert is_up or "is outside this LAN" in seen.reason


def test_without_a_place_nothing_is_asked_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d8mesh.backends.ollama.leaves_lan", lambda url: True)
    question = ChatRequest(messages=({"role": "user", "content": "secret"},))
    with OllamaServer() as server:
        pool = ServicePool([backend_of(Config(ollama_url=server.url, cloud="yes"))])
        pool.look()
        assert pool.services[0].is_useful
        with pytest.raises(BackendUnavailableError):
            pool.chat(question, ChatRun(is_cancelled=lambda: False, deadline_s=30))
        assert server.chats == []


def test_a_name_that_comes_to_lead_outside_is_not_followed_and_the_mesh_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verdict, offers = [False], list[OfferedService]()
    monkeypatch.setattr("d8mesh.backends.ollama.leaves_lan", lambda url: verdict[0])
    question = ChatRequest(messages=({"role": "user", "content": "secret"},))
    run = ChatRun(is_cancelled=lambda: False, deadline_s=30)
    told = PoolListener(offer=lambda services: offers.extend(services))
    with OllamaServer() as server:
        pool = ServicePool([backend_of(Config(ollama_url=server.url, cloud="yes"))], told=told)
        pool.look()
        pool.chat(question, run)
        verdict[0] = True
        with pytest.raises(BackendUnavailableError, match="is outside this LAN"):
            pool.chat(question, run)
        assert len(server.chats) == 1
        assert not offers[-1].is_cloud
        pool.look()
        assert offers[-1].is_cloud
