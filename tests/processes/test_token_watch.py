"""The web process follows the file of tokens, and writes down what they use."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from d8mesh.edge.token_file import TOKENS_NAME, USAGE_NAME, TokenFile
from d8mesh.errors import ConfigError
from d8mesh.processes import token_watch
from d8mesh.processes.token_watch import TokenWatch
from tests.http.tokens import token_of


def test_a_change_is_seen_at_the_next_look(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    watch = TokenWatch(file)
    ended: list[str] = []
    watch.tokens.on_end.append(ended.append)
    file.add(token_of("alice"))
    assert watch.tokens.find("alice") is None
    watch.look()
    assert watch.tokens.find("alice") is not None
    file.revoke("alice", 1.0)
    watch.look()
    assert ended == [token_of("alice").id]


def test_while_the_file_is_damaged_all_stays_as_it_is(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    file.add(token_of("alice"))
    watch = TokenWatch(file)
    (tmp_path / TOKENS_NAME).write_text("{")
    watch.look()
    watch.look()
    assert watch.tokens.find("alice") is not None
    with pytest.raises(ConfigError):
        TokenWatch(file)  # at a start nobody knows what was revoked
    (tmp_path / TOKENS_NAME).unlink()
    watch.look()
    assert watch.tokens.find("alice") is None


def test_usage_goes_on_after_a_restart(tmp_path: Path) -> None:
    file, alice = TokenFile(tmp_path), token_of("alice")
    file.add(alice)
    watch = TokenWatch(file)
    watch.tokens.use(alice, 0.0)
    watch.tokens.spend(alice.id, input_tokens=3, output_tokens=4)
    watch.write_usage()
    again = TokenWatch(file)
    again.tokens.use(alice, 0.0)
    again.write_usage()
    used = file.usage()[alice.id]
    assert (used.requests, used.input_tokens, used.output_tokens) == (2, 3, 4)


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_damaged_usage_stops_nothing_and_is_set_aside(tmp_path: Path, is_kept: bool) -> None:
    file, alice = TokenFile(tmp_path), token_of("alice")
    file.add(alice)
    (tmp_path / USAGE_NAME).write_text("{")
    aside = tmp_path / f"{USAGE_NAME}.damaged"
    if is_kept:
        aside.mkdir()  # so it cannot be set aside
    watch = TokenWatch(file)
    assert not watch.tokens.usage
    assert aside.is_file() is not is_kept
    watch.tokens.use(alice, 0.0)
    watch.write_usage()
    assert file.usage()[alice.id].requests == 1


def test_what_a_token_used_that_is_forgotten_is_forgotten_too(tmp_path: Path) -> None:
    file, alice = TokenFile(tmp_path), token_of("alice")
    file.add(alice)
    watch = TokenWatch(file)
    watch.tokens.use(alice, 0.0)
    watch.write_usage()
    (tmp_path / TOKENS_NAME).unlink()
    file.add(token_of("bob"))
    assert not TokenWatch(file).tokens.usage
    watch.look()
    assert not watch.tokens.usage


def test_nothing_is_written_while_nothing_is_used(tmp_path: Path) -> None:
    TokenWatch(TokenFile(tmp_path)).write_usage()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_written_later(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    watch = TokenWatch(TokenFile(folder))
    watch.tokens.use(token_of("alice"), 0.0)
    watch.write_usage()
    folder.mkdir()
    watch.write_usage()
    assert TokenFile(folder).usage()[token_of("alice").id].requests == 1


def test_it_looks_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_watch, "TOKENS_LOOK_S", 0.001)
    file = TokenFile(tmp_path)
    watch = TokenWatch(file)
    file.add(token_of("alice"))
    watch.tokens.use(token_of("alice"), 0.0)

    async def until_seen() -> None:
        looking = asyncio.create_task(watch.run())
        while watch.tokens.find("alice") is None or not file.usage():
            await asyncio.sleep(0.001)
        looking.cancel()

    asyncio.run(asyncio.wait_for(until_seen(), 20.0))
