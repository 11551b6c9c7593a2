"""Which orchestrators this machine trusts: `join pins`, `join trust`, `join unpin`.

What is changed here holds for all workers and clients of the data folder, those that run too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from d8mesh.apps.tables import lines_of, wrapped
from d8mesh.config import Config
from d8mesh.core.protocol.pinning import Pin, parse_fingerprint
from d8mesh.edge.pins import PinFile
from d8mesh.edge.terminal import as_json, say, width
from d8mesh.errors import ConfigError, D8Error
from d8mesh.words import tr

#: What `join` does on the machine where it is run, whether an orchestrator is there or not.
ACTIONS: Final = frozenset({"pins", "trust", "unpin"})
#: All keys of the mesh.
ALL: Final = "all"


def run(config: Config, options: argparse.Namespace) -> int:
    """Do `options.action`, with the key `options.who` if it takes one; return the exit code."""
    file, mesh = PinFile(Path(config.data_dir)), config.mesh
    told: list[str] = []
    if options.action == "trust":
        told = _trust(file, mesh, options.who)
    elif options.action == "unpin":
        told = _unpin(file, mesh, options.who)
    if options.json:
        say(as_json({"mesh": mesh, "pins": [_row(pin) for pin in file.of(mesh)]}))
    elif options.action == "pins":
        _show(mesh, file.of(mesh))
    for text in [] if options.json else told:
        for line in wrapped(text, width()):
            say(line)
    return 0


def _trust(file: PinFile, mesh: str, who: str) -> list[str]:
    fingerprint, key = parse_fingerprint(who)
    with _writing(file):
        file.add(mesh, Pin(fingerprint, key, since=time.time()))
    return [
        tr(
            "{key} is trusted as an orchestrator of mesh {mesh}; workers and clients that run here "
            "see it within seconds",
            key=fingerprint,
            mesh=mesh,
        )
    ]


def _unpin(file: PinFile, mesh: str, who: str) -> list[str]:
    told: list[str] = []
    known = [pin.fingerprint for pin in file.of(mesh)]
    for fingerprint in known if who == ALL else [parse_fingerprint(who)[0]]:
        if fingerprint not in known:
            raise D8Error(f"the key {fingerprint} is not known here of mesh {mesh!r}")
        with _writing(file):
            file.remove(mesh, fingerprint)
        told.append(tr("{key} is trusted no longer", key=fingerprint))
    if not file.of(mesh):
        told.append(
            tr("no key of mesh {mesh} is known now: the first that answers is trusted", mesh=mesh)
        )
    return told


def _show(mesh: str, pins: tuple[Pin, ...]) -> None:
    if not pins:
        say(tr("no orchestrator of mesh {mesh} is known yet: the first is trusted", mesh=mesh))
        return
    cells = [[pin.fingerprint, pin.broker_id or tr("not met yet"), _day(pin.since)] for pin in pins]
    for line in lines_of([tr("key"), tr("orchestrator"), tr("since")], cells, width=width()):
        say(line)


def _row(pin: Pin) -> dict[str, object]:
    return {
        "fingerprint": pin.fingerprint,
        "key": None if pin.key is None else pin.key.hex(),
        "broker_id": pin.broker_id or None,
        "since": pin.since,
    }


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


@contextmanager
def _writing(file: PinFile) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{file.path} cannot be written ({error.strerror or error})") from error
