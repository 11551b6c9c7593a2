"""The command `join`: who may join the mesh of this machine's orchestrator.

What it does for the other side, on the machines of workers and clients, is in `pins`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from d8mesh.apps import pins
from d8mesh.apps.tables import lines_of, wrapped
from d8mesh.apps.work import connect
from d8mesh.config import Config
from d8mesh.core.protocol.addresses import LOOPBACK, endpoint
from d8mesh.edge import address_file
from d8mesh.edge.terminal import as_json, say, tell, width
from d8mesh.errors import BrokerUnavailableError, UnknownMemberError
from d8mesh.program import command_name
from d8mesh.words import escaped, tr

MEMBER_COLUMNS: Final = ("standing", "name", "kind", "address", "fingerprint", "seen", "there")
#: How long ago in the unit that says it in a small number, the largest first.
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))

ListedMember = Mapping[str, Any]


class AsksAboutMembers(Protocol):
    """What this command needs of a client."""

    def ask(self, what: str, args: Mapping[str, object], /) -> dict[str, Any]:
        """Ask the orchestrator something."""


def run(config: Config, options: argparse.Namespace) -> int:
    """List who is known, let a key in, show one out, or forget one; return the exit code.

    What this machine trusts as orchestrators is `apps.pins`.

    Raises:
        BrokerUnavailableError: no orchestrator of this data folder answers.
        UnknownMemberError, AmbiguousMemberError: the name or fingerprint means none, or several.
    """
    if options.action in pins.ACTIONS:
        return pins.run(config, options)
    from d8mesh.nodes.client import Client  # slow to import

    with Client(endpoint=own_endpoint(config), config=config) as client:
        connect(client, timeout_s=options.timeout_s, on_wait=tell)
        return run_with(client, options)


def run_with(client: AsksAboutMembers, options: argparse.Namespace) -> int:
    """Do what `run` does with a client that is there."""
    if options.action == "list":
        return _list(client, options)
    try:
        member = client.ask(f"members.{options.action}", {"who": options.who})
    except UnknownMemberError as error:
        error.add_note(f"`{command_name()} join list` has all")
        raise
    if options.json:
        say(as_json(member))
    else:
        say(_done(options.action, member))
    return 0


def own_endpoint(config: Config) -> str:
    """Return where the orchestrator of this data folder is: only that one takes our word."""
    found = address_file.read(Path(config.data_dir), config.mesh)
    if found is None or found.server_key is None:
        folder = str(Path(config.data_dir).absolute())
        raise BrokerUnavailableError(
            f"no orchestrator of mesh {config.mesh!r} runs with the data folder {folder}: run this "
            "on the orchestrator's machine, as its user, with its D8_MESH and D8_DATA_DIR"
        )
    return f"{endpoint(LOOPBACK, found.port)}?key={found.server_key.hex()}"


def _list(client: AsksAboutMembers, options: argparse.Namespace) -> int:
    body = client.ask("members", {})
    if options.json:
        say(as_json(body))
        return 0
    for line in listing_lines(body, time.time(), width()):
        say(line)
    return 0


def listing_lines(body: ListedMember, now: float, columns: int | None) -> Iterator[str]:
    """Yield what there is to say of all members at `now`, in Unix seconds."""
    members: list[ListedMember] = body["members"]
    rows = [
        (
            tr(_standing(each)),
            str(each["name"]) or "?",
            tr(each["kind"]) if each["kind"] else "?",
            str(each["address"]),
            str(each["fingerprint"]),
            tr("now") if each["is_connected"] else _ago(each["last_seen"], now),
            tr("yes") if each["is_connected"] else tr("no"),
        )
        for each in members
    ]
    yield from wrapped(mode_text(body["mode"]), columns)
    yield tr("the key of this orchestrator: {key}", key=body["orchestrator"])
    if rows:
        yield from lines_of([tr(name) for name in MEMBER_COLUMNS], rows, width=columns)
    else:
        yield tr("nobody has joined yet")
    waiting = [each for each in members if each["standing"] == "waiting"]
    for each in waiting[:1]:
        command = f"{command_name()} join approve {each['fingerprint']}"
        yield tr("to let the first of those that wait in: {command}", command=command)


def mode_text(modes: list[str]) -> str:
    """Return in words what it takes to come in."""
    if "approve" in modes and "key" in modes:
        return tr("who joins needs the mesh key, and has to be approved here")
    if "approve" in modes:
        return tr("who joins has to be approved here (D8_JOIN=approve)")
    if "key" in modes:
        return tr("who joins needs the mesh key (D8_MESH_KEY)")
    return tr("whoever is on this network may join (D8_JOIN=lan)")


def _standing(member: ListedMember) -> str:
    if member["banned_s"] is not None:
        return "banned for a while"
    return "own" if member["is_own"] else str(member["standing"])


def _ago(at: float | None, now: float) -> str:
    if at is None:
        return "-"
    past_s = max(0.0, now - at)
    size, unit = next((each for each in _UNITS if past_s >= each[0]), _UNITS[-1])
    return f"{past_s // size:.0f} {unit}"


def _done(action: str, member: ListedMember) -> str:
    """Return in words what was done, and with whom."""
    what = {"key": member["fingerprint"], "address": escaped(str(member["address"])) or "?"}
    what["name"] = escaped(str(member["name"])) or "?"
    if action == "approve" and member["is_connected"]:
        return tr("{key} ({name} at {address}) may join, and is there", **what)
    if action == "approve":
        return tr("{key} ({name} at {address}) may join; it tries again by itself", **what)
    if action == "revoke":
        return tr("{key} ({name} at {address}) is out: its tasks go on elsewhere", **what)
    ids = ", ".join(escaped(str(each)) for each in member["worker_ids"])
    told = tr("{key} ({name} at {address}) is forgotten", **what)
    if member["standing"] == "revoked":
        told = tr("{key} ({name} at {address}) stays revoked", **what)
    return f"{told}; " + tr("free again: {ids}", ids=ids) if ids else told
