"""One orchestrator is found, connected, and connected again when its link is of no use."""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from d8mesh.config import Config
from d8mesh.core.protocol.membership import fingerprint
from d8mesh.core.protocol.route import KnownBroker, Route
from d8mesh.edge import address_file
from d8mesh.edge.transport.connector import Connector
from d8mesh.edge.transport.sockets import DealerLink
from d8mesh.errors import ConfigError
from d8mesh.nodes.reconnector import reconnector
from d8mesh.nodes.reconnector import search as searching
from d8mesh.nodes.reconnector.known_brokers import MAX_BROKERS, MAX_PORTS, KnownBrokers
from d8mesh.nodes.reconnector.reconnector import Reconnector
from d8mesh.nodes.reconnector.search import Search, checked, find_route
from d8mesh.nodes.reconnector.trust import OrchestratorTrust
from tests.http.certified import certified
from tests.http.served import served
from tests.keyed import PEER, SERVER, endpoint_of, route_to
from tests.nodes.health_page import HealthPage, health_page
from tests.nodes.mesh import PATIENCE_S, free_port, until


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "TRY_S", PATIENCE_S)
    monkeypatch.setattr(reconnector, "ACCEPT_S", PATIENCE_S)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def health() -> Iterator[tuple[str, int]]:
    with health_page() as page:
        yield page


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def on_loopback(port: int, web_port: int | None = None, broker_id: str = "b") -> KnownBroker:
    return KnownBroker(broker_id, ("127.0.0.1",), port, web_port, SERVER.public)


def config_in(folder: Path) -> Config:
    return Config(mesh="m", data_dir=str(folder), interfaces=("no-mdns",))


def known_in(folder: Path) -> KnownBrokers:
    return KnownBrokers(OrchestratorTrust(config_in(folder), None))


class Made:
    """What a reconnector has made, and how often it woke who takes it."""

    def __init__(self, search: Search) -> None:
        self.links: deque[tuple[str, DealerLink, Route]] = deque()
        self.wakes = 0
        connector = Connector(self._wake, keys=PEER)
        self.reconnector = Reconnector(search, connector, links=self.links, key="k")

    def _wake(self) -> None:
        self.wakes += 1

    def next(self) -> tuple[DealerLink, Route]:
        until(lambda: self.links)
        key, link, route = self.links.popleft()
        assert key == "k"
        link.close()
        return link, route

    def close(self) -> None:
        self.reconnector.close()


@contextmanager
def reconnecting(search: Search) -> Iterator[Made]:
    with closing(Made(search)) as made:
        yield made


# ------------------------------------------------------------------------------- routes


def test_zeromq_is_the_route_while_its_port_lets_us_through(
    listener: socket.socket, health: tuple[str, int]
) -> None:
    broker_port = port_of(listener)
    route = find_route(on_loopback(broker_port, health[1]))
    assert route is not None
    assert (route.endpoint, route.is_http) == (f"tcp://127.0.0.1:{broker_port}", False)
    route = find_route(on_loopback(free_port(), health[1]))
    assert route is not None
    assert (route.endpoint, route.is_http) == (health[0], True)
    assert find_route(on_loopback(free_port())) is None


def test_an_orchestrator_with_a_certificate_is_come_to_by_https(
    health: tuple[str, int],
) -> None:
    told = replace(on_loopback(free_port(), health[1]), tls="f" * 64)
    place = f"https://127.0.0.1:{health[1]}"
    assert find_route(told) == Route(place, "b", SERVER.public, "f" * 64)


def test_where_a_person_sends_us_only_this_machine_tells_which_certificate_is_good(
    tmp_path: Path,
) -> None:
    with served(tls=certified()) as here:
        url = f"https://127.0.0.1:{here.port}"
        search = Search(config_in(tmp_path), given=url)
        tls = certified().fingerprint
        told = replace(on_loopback(free_port(), here.port), tls=tls)
        search.known.add(told)
        assert search.find() is None
        assert f"D8_TLS_TRUST={tls}" in search.trouble(None)
        (tmp_path / address_file.FOLDER).mkdir()
        address_file.write(tmp_path / address_file.FOLDER, told, config_in(tmp_path).mesh)
        assert search.find() is None
        assert "is no orchestrator" in search.trouble(None), "it is asked, and answers otherwise"


def test_a_url_leads_to_the_broker_beside_it_or_through_itself(
    tmp_path: Path, listener: socket.socket, health: tuple[str, int]
) -> None:
    search = Search(config_in(tmp_path), given=health[0])
    told = {"broker_id": "b", "server_key": SERVER.public.hex()}
    HealthPage.body = json.dumps(told | {"broker_port": port_of(listener)}).encode()
    assert search.find() == route_to(port_of(listener), "b")
    HealthPage.body = json.dumps(told | {"broker_port": free_port()}).encode()
    assert search.find() == Route(health[0], "b", SERVER.public, is_given=True)
    search.trust.welcomed(PEER.public, "another")
    assert search.find() is None, "a URL is a hint, as any address"
    assert f"{health[0]}: b at 127.0.0.1 port" in search.trouble(None)
    assert fingerprint(SERVER.public) in search.trouble(None)


def test_a_url_where_no_orchestrator_answers_leads_nowhere(
    tmp_path: Path, health: tuple[str, int]
) -> None:
    search = Search(config_in(tmp_path), given=health[0])
    assert search.find() is None
    assert "is no orchestrator" in search.trouble(None)


def test_the_newest_ports_come_first_with_every_address_ever_told_with_them(
    tmp_path: Path,
) -> None:
    known = known_in(tmp_path)
    assert not known.add(KnownBroker("b", ("10.0.0.1",), 7010, 7001))
    assert not known.add(KnownBroker("b", ("10.0.0.1",), 7010, 7001)), "nothing new"
    assert known.add(KnownBroker("b", ("10.0.0.2",), 7010, 7001))
    assert known.add(KnownBroker("b", ("10.0.0.2",), 7011, 7001))
    assert known.told["b"] == (
        KnownBroker("b", ("10.0.0.2",), 7011, 7001),
        KnownBroker("b", ("10.0.0.2", "10.0.0.1"), 7010, 7001),
    )


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    known = known_in(tmp_path)
    for n in range(MAX_BROKERS + 5):
        known.add(KnownBroker(f"b{n}", (), 7010, None))
    for port in range(1, MAX_PORTS + 5):
        known.add(KnownBroker("b0", tuple(f"10.0.0.{n}" for n in range(100)), port, None))
    assert len(known.told) == MAX_BROKERS
    assert len(known.told["b0"]) == MAX_PORTS
    assert max(len(each.addresses) for each in known.told["b0"]) < 100
    assert f"b{MAX_BROKERS}" in known.told


# ------------------------------------------------------------------------------- search


@pytest.mark.parametrize(
    ("url", "endpoint"), [("ftp://x", None), (5, None), (None, "tcp://x"), (None, 7010)]
)
def test_what_is_no_address_is_refused(url: Any, endpoint: Any) -> None:
    with pytest.raises(ConfigError):
        checked(url, endpoint)


def test_an_endpoint_that_is_given_is_the_only_route(tmp_path: Path) -> None:
    search = Search(config_in(tmp_path), given=endpoint_of(7010), known=known_in(tmp_path))
    search.known.add(on_loopback(7011))
    assert search.find() == route_to(7010)


def test_an_endpoint_without_a_key_has_that_of_who_is_known_to_be_there(
    tmp_path: Path, health: tuple[str, int]
) -> None:
    config = replace(config_in(tmp_path), web_port=health[1])
    HealthPage.body = b"{}"
    search = Search(config, given="tcp://127.0.0.1:7010", known=known_in(tmp_path))
    search.known.add(on_loopback(7011))
    assert search.find() is None
    told = {"broker_port": 7010, "broker_id": "b", "server_key": PEER.public.hex()}
    HealthPage.body = json.dumps(told).encode()
    assert search.find() == Route("tcp://127.0.0.1:7010", "", PEER.public)
    search.known.add(on_loopback(7010))
    search.trust.unreachable(PEER.public)
    assert search.find() == route_to(7010)


def test_the_last_good_one_is_tried_first_and_another_only_if_it_may_be(
    tmp_path: Path, listener: socket.socket
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        search = Search(config_in(tmp_path), known=known_in(tmp_path))
        assert search.find() is None
        search.known.add(on_loopback(port_of(other), broker_id="other"))
        route = search.find()
        assert route is not None
        assert route.broker_id == "other"
        search.known.add(on_loopback(port_of(listener), broker_id="a"))
        assert search.find() == route
        search.only = "a"
        assert search.find() == route_to(port_of(listener), "a")
        search.only = "nobody"
        assert search.find() is None


def test_who_has_answered_before_is_tried_before_all_false_names(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(config_in(tmp_path), known=known_in(tmp_path))
    search.trust.welcomed(SERVER.public, "real")
    search.known.add(on_loopback(port_of(listener), broker_id="real"))
    for n in range(MAX_BROKERS - 1):
        search.known.add(on_loopback(free_port(), broker_id=f"false{n}"))
    tried = looked_at(search, monkeypatch)
    assert search.find() == route_to(port_of(listener), "real")
    assert tried == ["real"]


def test_one_pass_through_false_names_is_bounded_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "PASS_S", 0.0)
    search = Search(config_in(tmp_path), known=known_in(tmp_path))
    for broker_id in ("a", "b", "c"):
        search.known.add(on_loopback(free_port(), broker_id=broker_id))
    tried = looked_at(search, monkeypatch)
    for _ in range(4):
        assert search.find() is None
    assert tried == ["c", "b", "a", "c"], "the newest told first, each before one comes again"


def looked_at(search: Search, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return whom the search tries, in turn, as it goes on."""
    tried: list[str] = []

    def look(broker: KnownBroker, **more: Any) -> Route | None:
        tried.append(broker.broker_id)
        return find_route(broker, **more)

    monkeypatch.setattr(searching, "find_route", look)
    return tried


def test_a_route_that_is_useless_is_passed_over_for_the_next(
    tmp_path: Path, listener: socket.socket
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        useless = f"tcp://127.0.0.1:{port_of(other)}"
        search = Search(
            config_in(tmp_path),
            known=known_in(tmp_path),
            is_useless=lambda broker_id, endpoint: endpoint == useless,
        )
        search.known.add(on_loopback(port_of(listener)))
        search.known.add(on_loopback(port_of(other)))
        assert search.find() == route_to(port_of(listener), "b")


def test_zeromq_at_older_ports_is_better_than_http_at_the_newest(
    tmp_path: Path, listener: socket.socket, health: tuple[str, int]
) -> None:
    search = Search(config_in(tmp_path), known=known_in(tmp_path))
    search.known.add(on_loopback(port_of(listener)))
    search.known.add(on_loopback(free_port(), health[1]))
    assert search.find() == route_to(port_of(listener), "b")
    listener.close()
    assert search.find() == Route(health[0], "b", SERVER.public)


def test_the_address_file_names_only_whom_the_search_is_for(
    tmp_path: Path, listener: socket.socket
) -> None:
    (tmp_path / address_file.FOLDER).mkdir()
    address_file.write(tmp_path / address_file.FOLDER, on_loopback(port_of(listener)), "m")
    search = Search(config_in(tmp_path))
    assert search.find() == route_to(port_of(listener), "b")
    search.only = "another"
    assert search.find() is None


# ------------------------------------------------------------------------ the reconnector


def test_a_link_is_made_told_and_made_again(tmp_path: Path, listener: socket.socket) -> None:
    search = Search(config_in(tmp_path), given=endpoint_of(port_of(listener)))
    with reconnecting(search) as made:
        link, route = made.next()
        assert not link.is_tunnelled
        assert made.reconnector.route == route == route_to(port_of(listener))
        until(lambda: made.wakes == 1)
        made.reconnector.again()
        made.next()
        until(lambda: made.wakes == 2)


def test_news_of_a_place_end_the_pause_before_the_next_try(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnector, "SHORTEST_PAUSE_S", 100 * PATIENCE_S)
    monkeypatch.setattr(reconnector, "LONGEST_PAUSE_S", 100 * PATIENCE_S)
    search = Search(config_in(tmp_path), known=known_in(tmp_path))
    with reconnecting(search) as made:
        made.reconnector.told(on_loopback(port_of(listener)))
        assert made.next()[1].broker_id == "b"


def test_zeromq_is_taken_as_soon_as_its_port_opens(
    tmp_path: Path, health: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnector, "UPGRADE_S", 0.05)
    port = free_port()
    search = Search(config_in(tmp_path), known=known_in(tmp_path))
    search.known.add(on_loopback(port, health[1]))
    with reconnecting(search) as made:
        link, route = made.next()
        assert link.is_tunnelled
        assert route.is_http
        with socket.create_server(("127.0.0.1", port)):
            assert not made.next()[0].is_tunnelled
        assert made.wakes == 2, "while only HTTP works that link stays"


def test_http_is_not_taken_at_once_where_zeromq_worked(
    tmp_path: Path,
    listener: socket.socket,
    health: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconnector, "DOWNGRADE_S", 100 * PATIENCE_S)
    port = port_of(listener)
    tries: list[Route | None] = []
    search = Search(config_in(tmp_path), known=known_in(tmp_path))
    find = search.find

    def noted() -> Route | None:
        tries.append(find())
        return tries[-1]

    monkeypatch.setattr(search, "find", noted)
    search.known.add(on_loopback(port, health[1]))
    with reconnecting(search) as made:
        made.next()
        listener.close()
        made.reconnector.again()
        until(lambda: len([each for each in tries if each and each.is_http]) >= 2)
        assert not made.links
        with socket.create_server(("127.0.0.1", port)):
            assert not made.next()[0].is_tunnelled
        monkeypatch.setattr(reconnector, "DOWNGRADE_S", 0.0)
        made.reconnector.again()
        assert made.next()[0].is_tunnelled


def test_who_is_doubted_and_accepts_keeps_the_link(tmp_path: Path, listener: socket.socket) -> None:
    search = Search(config_in(tmp_path), given=endpoint_of(port_of(listener)))
    with reconnecting(search) as made:
        made.reconnector.doubt()  # no link yet: nothing to doubt
        made.next()
        made.reconnector.doubt()
        until(lambda: not made.reconnector._is_doubted)
        assert not made.links
        listener.close()
        made.reconnector.doubt()
        made.next()


def test_what_was_not_taken_is_closed(tmp_path: Path, listener: socket.socket) -> None:
    search = Search(config_in(tmp_path), given=endpoint_of(port_of(listener)))
    with reconnecting(search) as made:
        until(lambda: made.links)
        link = made.links[0][1]
        assert not link.is_tunnelled
    assert link.socket.closed
    assert not made.links


def test_why_there_is_no_link_is_told_and_whether_there_ever_was_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnector, "TROUBLE_S", 0.0)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with closing(
        Reconnector(Search(config_in(tmp_path), given=endpoint), Connector(keys=PEER))
    ) as one:
        assert one.trouble().startswith(f"never connected: {endpoint}: ")
        one.proven("b")
        assert one.trouble().startswith("the connection to the orchestrator is lost: ")
    search = Search(config_in(tmp_path), known=known_in(tmp_path), only="b")
    assert search.trouble(None) == "looking for b of mesh 'm', which has the tasks"
    search.known.add(replace(on_loopback(free_port()), addresses=("127.0.0.1", "127.0.0.2")))
    assert search.trouble(None).startswith("b is announced at 127.0.0.1, 127.0.0.2 port ")
