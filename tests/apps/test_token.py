"""The command `token`: what it says, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from d8mesh import words
from d8mesh.apps.recover import JOURNAL
from d8mesh.cli import main
from d8mesh.core.protocol.access_tokens import TokenScope, TokenUsage, digest_of
from d8mesh.edge.token_file import USAGE_NAME, TokenFile


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D8_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "orchestrator"


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    assert main(["token", *arguments]) == code
    out, err = capsys.readouterr()
    return out, err


def test_the_secret_is_printed_once_and_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = said(capsys, "create", "alice", "--scope", "chat", "--scope", "submit",
                    "--limit", "60/min")  # fmt: skip
    secret = out.strip()
    assert out == f"{secret}\n"
    assert secret.startswith("d8_")
    assert secret not in err
    assert "alice, for chat, submit, 60/min at most" in err
    assert "history" in err
    (token,) = TokenFile(folder).tokens()
    assert token.digest == digest_of(secret)
    assert token.scopes == (TokenScope.CHAT, TokenScope.SUBMIT)
    assert secret not in "".join(said(capsys, "list") + said(capsys, "list", "--json"))


def test_it_speaks_the_language_of_the_settings(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D8_LANG", "es")
    try:
        assert "No hay tokens de acceso" in said(capsys, "list")[0]
        assert "Este es el token alice, para chat" in said(capsys, "create", "alice")[1]
        assert "en uso" in said(capsys, "list")[0]
        assert "queda revocado" in said(capsys, "revoke", "alice")[0]
    finally:
        words.use(words.ENGLISH)


def test_a_token_is_for_chats_if_nothing_else_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = said(capsys, "create", "alice", "--json")
    told = json.loads(out)
    assert (told["name"], told["scopes"], told["limit"]) == ("alice", ["chat"], None)
    assert TokenFile(folder).tokens()[0].digest == digest_of(told["token"])


def test_the_list_says_what_was_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "create", "alice", "--limit", "7/h")
    file = TokenFile(folder)
    file.write_usage({file.tokens()[0].id: TokenUsage(12, 345, 6789, 86_400.0 * 400)})
    head, row = said(capsys, "list")[0].splitlines()
    assert head.split()[:4] == ["token", "for", "limit", "state"]
    assert row.split()[-3:] == ["12", "345", "6789"]
    assert "1971-02-0" in row
    (told,) = json.loads(said(capsys, "list", "--json")[0])["tokens"]
    assert (told["requests"], told["input_tokens"], told["output_tokens"]) == (12, 345, 6789)
    assert told["revoked_at"] is None


def test_where_the_usage_is_damaged_tokens_are_listed_and_revoked_all_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "create", "alice")
    (usage,) = folder.rglob("tokens.json")
    usage.with_name(USAGE_NAME).write_text("{")
    for arguments in (["list"], ["list", "--json"], ["revoke", "alice", "--json"]):
        out, err = said(capsys, *arguments)
        assert "alice" in out
        assert "damaged" in err


def test_a_revoked_token_is_listed_as_such(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "create", "alice")
    assert "alice is revoked" in said(capsys, "revoke", "alice")[0]
    assert "revoked 20" in said(capsys, "list")[0]
    said(capsys, "create", "alice")
    told = json.loads(said(capsys, "revoke", "alice", "--json")[0])
    assert told["revoked_at"] > 0


def test_without_tokens_it_says_how_to_make_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "token create NAME" in said(capsys, "list")[0]
    assert json.loads(said(capsys, "list", "--json")[0]) == {"tokens": []}


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["create", "taken"], 1, "there is a token taken already"),
        (["revoke", "nobody"], 1, "there is no token 'nobody'; there are: taken"),
        (["create", "a b"], 2, "expected a name of 1 to 64 letters"),
        (["create", "x", "--scope", "root"], 2, "there is: submit, work, chat, admin"),
        (["create", "x", "--limit", "5"], 2, "60/min or 1000/h"),
        (["create", "x", "--limit", "0/min"], 2, "60/min or 1000/h"),
        (["create"], 2, "NAME"),
        ([], 2, "ACTION"),
        (["show"], 2, "create, list, revoke"),
    ],
)
def test_what_is_wrong_is_told_in_clear_words(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, why: str
) -> None:
    said(capsys, "create", "taken")
    assert why in said(capsys, *arguments, code=code)[1]


def test_who_makes_a_token_where_no_orchestrator_has_run_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "No orchestrator has run with the data folder"
    assert told in said(capsys, "create", "alice")[1]
    assert told in said(capsys, "create", "bob")[1]
    (folder / JOURNAL.name).touch()
    assert told not in said(capsys, "create", "carol")[1]


def test_another_data_folder_can_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "create", "alice", "--data", str(tmp_path / "x"))
    assert (tmp_path / "x" / "orchestrator" / "tokens.json").exists()
