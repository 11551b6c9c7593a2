"""What our own nodes show over HTTP, and to whom."""

from __future__ import annotations

from d8mesh.config import Config
from d8mesh.core.protocol.membership import announced_proof, mesh_secret
from d8mesh.edge.web_pass import bearer, bearer_for, credential, secret_of_mesh

KEY = "0123456789abcdef"
CLOSED = Config(mesh_key=KEY)
SERVER = bytes(32)


def told(secret: bytes) -> dict[str, object]:
    return {"server_key": SERVER.hex(), "proof": announced_proof(secret, SERVER).hex()}


def test_the_mesh_key_itself_is_never_shown() -> None:
    shown = credential(CLOSED)
    assert shown is not None
    assert shown.startswith("d8p_")
    assert KEY not in shown
    assert bearer(CLOSED) == {"Authorization": f"Bearer {shown}"}
    assert credential(Config(mesh_key=KEY, mesh="other")) != shown


def test_who_has_neither_shows_nothing() -> None:
    assert credential(Config()) is None
    assert bearer(Config()) == {}
    assert secret_of_mesh(Config()) is None
    assert bearer_for(Config(), told(b"s" * 32), is_given=True) == {}


def test_a_token_that_is_given_is_shown_in_its_place() -> None:
    assert credential(Config(mesh_key=KEY, token="d8_mine")) == "d8_mine"


def test_only_who_proves_the_mesh_key_is_shown_the_pass() -> None:
    secret = mesh_secret(KEY, "d8")
    assert bearer_for(CLOSED, told(secret), is_given=False) == bearer(CLOSED)
    for other in (told(b"x" * 32), {}, {"server_key": "zz", "proof": None}):
        assert bearer_for(CLOSED, other, is_given=True) == {}


def test_a_token_goes_only_where_a_person_said() -> None:
    config = Config(token="d8_mine")
    assert bearer_for(config, {}, is_given=True) == {"Authorization": "Bearer d8_mine"}
    assert bearer_for(config, {}, is_given=False) == {}


def test_neither_is_in_the_text_of_the_settings() -> None:
    assert "d8_mine" not in repr(Config(token="d8_mine", mesh_key=KEY))
