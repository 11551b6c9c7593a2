"""The command `token`: access tokens of this machine's orchestrator, for people and programs.

It changes the file beside the journal; an orchestrator that runs follows within a second. The
secret is said once, on standard output, and is kept nowhere.
"""

from __future__ import annotations

import argparse
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from d8mesh.apps.recover import JOURNAL
from d8mesh.apps.tables import lines_of
from d8mesh.config import Config
from d8mesh.core.protocol.access_tokens import (
    SECRET_BYTES,
    AccessToken,
    TokenScope,
    TokenUsage,
    digest_of,
    secret_of,
)
from d8mesh.edge import data_folder
from d8mesh.edge.terminal import as_json, say, tell, width
from d8mesh.edge.token_file import TokenFile
from d8mesh.errors import ConfigError
from d8mesh.program import command_name
from d8mesh.words import tr

#: The folder of the orchestrator in the data folder.
FOLDER: Final = "orchestrator"
_TOKEN_COLUMNS: Final = ("token", "for", "limit", "state", "created", "last used", "requests",
                   "tokens in", "tokens out")  # fmt: skip


def run(config: Config, options: argparse.Namespace) -> int:
    """Do what is asked with the tokens of the data folder.

    Raises:
        ConfigError: the folder or the file cannot be used.
        D8Error: there is a token of this name already, or none.
    """
    data = Path(config.data_dir)
    actions: Mapping[str, Callable[[TokenFile, Path, argparse.Namespace], None]] = {
        "create": _create,
        "list": _list,
        "revoke": _revoke,
    }
    actions[options.action](TokenFile(data / FOLDER), data, options)
    return 0


def _create(file: TokenFile, data: Path, options: argparse.Namespace) -> None:
    data_folder.require(data, FOLDER)
    secret = secret_of(secrets.token_bytes(SECRET_BYTES))
    scopes = dict.fromkeys(options.scope or [TokenScope.CHAT.value])
    token = AccessToken(
        name=options.name,
        digest=digest_of(secret),
        scopes=tuple(map(TokenScope, scopes)),
        limit=options.limit,
        created_at=time.time(),
    )
    file.add(token)
    if options.json:
        say(as_json({**_body(token, TokenUsage()), "token": secret}))
        return
    say(secret)
    is_for = ", ".join(token.scopes)
    if token.limit:
        is_for = tr("{scopes}, {limit} at most", scopes=is_for, limit=token.limit)
    tell(
        tr(
            "This is the token {name}, for {scopes}. It is not shown again.",
            name=token.name,
            scopes=is_for,
        )
    )
    tell(
        tr(
            "Programs take it as their API key; others send it as Authorization: Bearer. In a "
            "command line it would stay in the shell's history: keep it in a file or a variable"
        )
    )
    if not (data / JOURNAL).exists():
        tell(
            tr(
                "No orchestrator has run with the data folder {folder} yet: only one that will "
                "knows this token. They are made on the orchestrator's machine, as its user",
                folder=data,
            )
        )


def _list(file: TokenFile, data: Path, options: argparse.Namespace) -> None:
    tokens, usage = file.tokens(), _usage(file)
    rows = [(each, usage.get(each.id, TokenUsage())) for each in tokens]
    if options.json:
        say(as_json({"tokens": [_body(each, used) for each, used in rows]}))
        return
    if not rows:
        say(
            tr(
                "There are no access tokens in {folder}. On the orchestrator's machine "
                "`{program} token create NAME` makes one.",
                folder=data / FOLDER,
                program=command_name(),
            )
        )
        return
    cells: Sequence[Sequence[str]] = [_cells(each, used) for each, used in rows]
    for line in lines_of([tr(name) for name in _TOKEN_COLUMNS], cells, width=width()):
        say(line)


def _revoke(file: TokenFile, data: Path, options: argparse.Namespace) -> None:
    token = file.revoke(options.name, time.time())
    if options.json:
        say(as_json(_body(token, _usage(file).get(token.id, TokenUsage()))))
        return
    say(
        tr(
            "The token {name} is revoked: within a second nothing is answered to it any more.",
            name=token.name,
        )
    )


def _usage(file: TokenFile) -> dict[str, TokenUsage]:
    """Return what was used, as far as that can be read: a token is revoked without it."""
    try:
        return file.usage()
    except ConfigError as error:
        tell(tr("what the tokens have used is not known: {why}", why=error))
        return {}


def _body(token: AccessToken, used: TokenUsage) -> dict[str, Any]:
    return {
        "name": token.name,
        "id": token.id,
        "scopes": list(token.scopes),
        "limit": None if token.limit is None else str(token.limit),
        "created_at": token.created_at,
        "revoked_at": token.revoked_at,
        "requests": used.requests,
        "input_tokens": used.input_tokens,
        "output_tokens": used.output_tokens,
        "last_used_at": used.last_used_at or None,
    }


def _cells(token: AccessToken, used: TokenUsage) -> tuple[str, ...]:
    return (
        token.name,
        ", ".join(token.scopes),
        "-" if token.limit is None else str(token.limit),
        tr("in use")
        if token.revoked_at is None
        else tr("revoked {day}", day=_time(token.revoked_at)),
        _time(token.created_at),
        _time(used.last_used_at),
        str(used.requests),
        str(used.input_tokens),
        str(used.output_tokens),
    )


def _time(at: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at else tr("never")
