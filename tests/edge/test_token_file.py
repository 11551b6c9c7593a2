"""The files of access tokens: whole, private, and changed by one at a time."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from d8mesh.core.protocol.access_tokens import RateLimit, TokenScope, TokenUsage
from d8mesh.edge import token_file
from d8mesh.edge.token_file import TOKENS_NAME, USAGE_NAME, TokenFile
from d8mesh.errors import ConfigError, D8Error
from tests.http.tokens import token_of


def test_tokens_are_kept_as_they_are(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    assert file.tokens() == ()
    alice = token_of("alice", TokenScope.CHAT, TokenScope.SUBMIT, limit=RateLimit(60, 60))
    file.add(alice)
    file.add(token_of("bob", TokenScope.ADMIN))
    assert TokenFile(tmp_path).tokens() == (alice, token_of("bob", TokenScope.ADMIN))


def test_a_name_is_given_again_once_it_is_revoked(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    file.add(token_of("alice", secret="1"))
    with pytest.raises(D8Error, match="there is a token alice already"):
        file.add(token_of("alice", secret="2"))
    assert file.revoke("alice", 5.0).revoked_at == 5.0
    file.add(token_of("alice", secret="2"))
    assert [each.revoked_at for each in file.tokens()] == [5.0, None]
    file.revoke("alice", 6.0)
    with pytest.raises(D8Error, match="alice is revoked already"):
        file.revoke("alice", 7.0)


def test_a_disk_that_takes_no_token_is_told_of_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TokenFile(tmp_path)
    file.add(token_of("alice"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for change in (lambda: file.add(token_of("bob")), lambda: file.revoke("alice", 1.0)):
        with pytest.raises(ConfigError, match="No space left on device; nothing was changed"):
            change()
    assert file.tokens() == (token_of("alice"),)


def test_who_names_a_token_that_is_not_there_is_told_which_are(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    with pytest.raises(D8Error, match="there is no token 'x'; there are: none"):
        file.revoke("x", 1.0)
    file.add(token_of("alice"))
    file.add(token_of("bob"))
    with pytest.raises(D8Error, match="there are: alice, bob"):
        file.revoke("x", 1.0)


def test_of_too_many_the_oldest_revoked_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_file, "MAX_KEPT_TOKENS", 2)
    file = TokenFile(tmp_path)
    file.add(token_of("a"))
    file.add(token_of("b"))
    with pytest.raises(D8Error, match="there are 2 tokens already"):
        file.add(token_of("c"))
    file.revoke("a", 1.0)
    file.add(token_of("c"))
    assert [each.name for each in file.tokens()] == ["b", "c"]


@pytest.mark.skipif(sys.platform == "win32", reason="the user's folder keeps others out")
def test_nobody_else_may_read_the_files_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file = TokenFile(tmp_path)
        file.add(token_of("a"))
        file.write_usage({"x": TokenUsage(1)})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert {TOKENS_NAME, USAGE_NAME} < set(modes)
    assert set(modes.values()) == {0o600}


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_tokens_that_others_may_have_written_let_nobody_in(tmp_path: Path, mode: int) -> None:
    file = TokenFile(tmp_path)
    file.add(token_of("alice"))
    (tmp_path / TOKENS_NAME).chmod(mode)
    with pytest.raises(ConfigError, match=r"others on this machine can write it.*chmod 600"):
        file.tokens()
    (tmp_path / TOKENS_NAME).chmod(0o644)
    assert len(file.tokens()) == 1


def test_the_secret_is_in_no_file(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    file.add(token_of("a", secret="d8_very-secret"))
    assert not any(b"very-secret" in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'[{"name": "a"}]', b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_told_with_what_to_do(tmp_path: Path, text: bytes) -> None:
    (tmp_path / TOKENS_NAME).write_bytes(text)
    with pytest.raises(ConfigError, match=r"it is damaged .* delete it and make the tokens anew"):
        TokenFile(tmp_path).tokens()


def test_a_disk_without_room_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TokenFile(tmp_path)
    file.add(token_of("a"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for change in (lambda: file.add(token_of("b")), lambda: file.revoke("a", 1.0)):
        with pytest.raises(ConfigError, match=rf"{TOKENS_NAME}: No space left on device"):
            change()
    assert [(each.name, each.revoked_at) for each in file.tokens()] == [("a", None)]


def test_where_no_orchestrator_was_there_is_no_token(tmp_path: Path) -> None:
    with pytest.raises(D8Error, match="there is no token 'a'"):
        TokenFile(tmp_path / "none").revoke("a", 1.0)


def test_the_signature_changes_with_the_tokens_alone(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    assert file.signature() is None
    file.add(token_of("a"))
    one = file.signature()
    file.write_usage({})
    assert file.signature() == one
    file.revoke("a", 1.0)
    assert file.signature() != one


def test_usage_is_written_over_and_over(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    assert file.usage() == {}
    file.write_usage({"x": TokenUsage(1, 2, 3, 4.0)})
    file.write_usage({"x": TokenUsage(2, 2, 3, 5.0), "y": TokenUsage()})
    assert file.usage() == {"x": TokenUsage(2, 2, 3, 5.0), "y": TokenUsage()}


def test_those_who_add_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    def add(name: str) -> None:
        TokenFile(tmp_path).add(token_of(name))

    threads = [threading.Thread(target=add, args=(f"t{n}",)) for n in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert {each.name for each in TokenFile(tmp_path).tokens()} == {f"t{n}" for n in range(8)}


def test_tokens_that_are_no_text_are_damaged(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    file.add(token_of("alice"))
    path = tmp_path / TOKENS_NAME
    path.write_bytes(path.read_bytes().replace(b"name", b"n\xddme", 1))
    with pytest.raises(ConfigError, match="damaged"):
        file.tokens()
