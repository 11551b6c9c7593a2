"""All workers that reach a service call it the same."""

from __future__ import annotations

import pytest

from d8mesh.backends.services.whereabouts import whereabouts
from d8mesh.edge.network import host_name, machine_id

OWN = frozenset({"10.0.0.5", "box", "box.local"})


@pytest.mark.parametrize(
    "url",
    ["http://localhost:7100", "http://127.0.0.1:7100", "http://[::1]:7100", "http://10.0.0.5:7100"],
)
def test_an_address_of_this_machine_is_local_by_whatever_name(url: str) -> None:
    place = whereabouts(url, "ollama", own=OWN)
    assert (place.id, place.machine) == (f"{machine_id()}:7100", host_name())
    assert place.is_local


def test_another_host_is_called_by_its_address() -> None:
    place = whereabouts("http://10.0.0.6:11434", "ollama", own=OWN)
    assert (place.id, place.machine, place.is_local) == ("10.0.0.6:11434", "10.0.0.6", False)
    assert whereabouts("http://[fd00::6]:1", "ollama", own=OWN).id == "fd00::6:1"


@pytest.mark.parametrize(("url", "port"), [("https://10.0.0.6", 443), ("http://10.0.0.6", 80)])
def test_a_url_without_a_port_has_that_of_its_scheme(url: str, port: int) -> None:
    assert whereabouts(url, "openai", own=OWN).id == f"10.0.0.6:{port}"


def test_a_name_that_nobody_knows_stands_for_itself() -> None:
    place = whereabouts("http://no-such-host.invalid:7100", "ollama", own=OWN)
    assert (place.id, place.is_local) == ("no-such-host.invalid:7100", False)


def test_what_has_no_address_is_in_this_process() -> None:
    place = whereabouts("", "embedded")
    assert (place.id, place.is_local) == (f"{machine_id()}:embedded", True)
