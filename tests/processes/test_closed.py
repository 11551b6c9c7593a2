"""Public addresses are refused; a port is closed where the mesh is."""

from __future__ import annotations

import pytest

from d8mesh.config import Config
from d8mesh.core.protocol.membership import link_pass, mesh_secret
from d8mesh.errors import ConfigError
from d8mesh.http.answers import Refusal
from d8mesh.processes.closed import guard_of, refuse_public

KEY = "0123456789abcdef"
FAR = "192.168.1.9"


def code_of(config: Config, peer: str = FAR, **fields: str) -> str:
    try:
        guard_of(config).access_of(peer, {name.replace("_", "-"): fields[name] for name in fields})
    except Refusal as refusal:
        return refusal.code
    return ""


def test_a_mesh_key_closes_the_port_but_to_who_shows_it() -> None:
    config = Config(mesh_key=KEY)
    assert code_of(Config()) == ""
    assert code_of(config) == "access.token"
    assert code_of(config, "127.0.0.1") == ""
    assert code_of(config, authorization=f"Bearer {KEY}") == ""
    secret, link = mesh_secret(KEY, config.mesh), "a" * 32
    shown = f"Bearer {link_pass(secret, link)}"
    assert code_of(config, authorization=shown, x_d8_link=link) == ""
    assert code_of(config, authorization=shown) == "access.token"


def test_where_keys_are_approved_the_port_is_closed_too() -> None:
    assert code_of(Config(join="approve")) == "access.token"
    assert code_of(Config(join="approve"), "127.0.0.1") == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost", "127.0.0.1", "10.0.0.5", "fd00::1"])
def test_private_addresses_are_listened_on(host: str) -> None:
    refuse_public(Config(web_host=host))


@pytest.mark.parametrize("host", ["8.8.8.8", "2001:db8::1", "100.64.0.1", "169.254.169.254"])
def test_a_public_address_takes_a_key_and_a_wish(host: str) -> None:
    refuse_public(Config(web_host=host, mesh_key=KEY, allow_public=True))
    for config in (
        Config(web_host=host),
        Config(web_host=host, mesh_key=KEY),
        Config(web_host=host, allow_public=True),
        Config(web_host=host, join="approve", allow_public=True),
    ):
        with pytest.raises(ConfigError, match="is a public address"):
            refuse_public(config)
