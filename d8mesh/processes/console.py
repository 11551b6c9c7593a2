"""What an orchestrator says to the person who started it: where it is, what happens to it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from d8mesh.config import Config
from d8mesh.core.protocol.addresses import endpoint, is_loopback
from d8mesh.core.protocol.membership import JoinMode, fingerprint
from d8mesh.edge.address_file import FOLDER as ORCHESTRATOR_FOLDER
from d8mesh.edge.network import usable_addresses
from d8mesh.edge.sqlite.payload_key import PAYLOAD_KEY_FILE
from d8mesh.edge.terminal import say as print_line
from d8mesh.edge.transport.keys import public_key_in
from d8mesh.http.tls import TlsFiles, shown_fingerprint
from d8mesh.program import command_name
from d8mesh.words import escaped, tr

#: What people call the child processes.
_SHOWN_NAMES: Final = {"broker": "broker", "web": "REST process"}
#: Why somebody is refused, in words.
_WHY_REFUSED: Final = {
    "access.address": "its address is not a private one",
    "access.banned": "it sent what is not allowed, again and again; it may come again in 3 minutes",
    "access.forbidden": "it asked for what it may not have",
    "access.key": "it does not show the D8_MESH_KEY of this mesh",
    "access.revoked": "its key was revoked",
}
#: Code of a notice of what `join` did -> what is said.
_SAID_OF_CHANGES: Final = {
    "member.approve": "{name}, key {key}, may join now",
    "member.revoke": "{name}, key {key}, is shown out: its key was revoked",
    "member.forget": "{name}, key {key}, is forgotten",
}
#: Addresses named; a machine with more has them for containers.
MAX_NAMED_ADDRESSES: Final = 4
#: What FLASK_HOST says for all addresses.
ANY_ADDRESS: Final = ("0.0.0.0", "::")


class OrchestratorConsole:
    """Says what happens to an orchestrator, whose data is in a folder."""

    def __init__(
        self, config: Config, folder: Path, *, say: Callable[[str], None] = print_line
    ) -> None:
        self._config, self._folder, self._print = config, folder, say
        self._fell_at: dict[str, float] = {}

    def started(
        self, broker_id: str, *, web_port: int, broker_port: int, tls: TlsFiles | None = None
    ) -> None:
        """Say where the orchestrator is, and how others come to it."""
        mesh = self._config.mesh
        self._say_tr(
            "orchestrator {id} of mesh {mesh}: REST on port {web}, workers on port {broker}; "
            "Ctrl-C stops it",
            id=broker_id,
            mesh=mesh,
            web=web_port,
            broker=broker_port,
        )
        addresses = addresses_of(self._config)
        scheme = "http" if tls is None else "https"
        urls = [endpoint(address, web_port, scheme) for address in addresses]
        self._row(tr("open"), *(f"{url}/health" for url in urls))
        self._row(tr("programs"), self._programs(urls[0]))
        if tls is not None:
            self._row(tr("certificate"), f"SHA-256 {shown_fingerprint(tls.fingerprint)}")
            self._row("", tr("programs are to trust it: {file}", file=tls.certificate.absolute()))
        trust = "" if tls is None else f"D8_TLS_TRUST={tls.fingerprint} "
        self._row(tr("other machines"), *self._hints(addresses[0], urls[0], trust))
        self._row(tr("closed"), *self._what_it_takes())
        key = public_key_in(Path(self._config.data_dir) / ORCHESTRATOR_FOLDER)
        if key is not None:
            self._row(tr("key"), fingerprint(key))
        self._row(tr("data"), str(self._folder))
        if self._config.encrypt:
            file = Path(self._config.data_dir).absolute() / ORCHESTRATOR_FOLDER / PAYLOAD_KEY_FILE
            self._row(
                tr("encryption"),
                tr(
                    "the key is in {file}: keep a copy elsewhere, without it all is lost", file=file
                ),
            )
        self._row(tr("logs"), str(self._folder / "logs"))

    def waiting(self, within_s: float) -> None:
        """Say that an earlier start in the same folder is still ending."""
        self._say_tr(
            "an earlier orchestrator of this folder is still ending: it is waited for, "
            "{seconds} s at most",
            seconds=f"{within_s:.0f}",
        )

    def fell(self, name: str, code: int, pause_s: float) -> None:
        """Say that a child process has ended by itself and comes back."""
        self._fell_at.setdefault(name, time.monotonic())
        when = tr("at once") if pause_s < 0.05 else tr("in {seconds} s", seconds=f"{pause_s:.1f}")
        self._say_tr(
            "the {child} ended ({why}): it is started again {when}",
            child=tr(_SHOWN_NAMES.get(name, name)),
            why=ending(code),
            when=when,
        )

    def gave_up(self, name: str, code: int) -> None:
        """Say that a child process has ended in a way that another start does not mend."""
        self._say_tr(
            "the {child} ended ({why}), and starting it again would not help",
            child=tr(_SHOWN_NAMES.get(name, name)),
            why=ending(code),
        )

    def rose(self, name: str) -> None:
        """Say that a child process that had ended is up again; nothing if it had not."""
        fell_at = self._fell_at.pop(name, None)
        if fell_at is not None:
            away = f"{time.monotonic() - fell_at:.1f}"
            self._say_tr(
                "the {child} is back after {seconds} s",
                child=tr(_SHOWN_NAMES.get(name, name)),
                seconds=away,
            )

    def noticed(self, notice: Mapping[str, str]) -> None:
        """Say who waits for approval, and how it is given; who was refused; what `join` did.

        Args:
            notice: the fields of `core.broker.effects.Notice`.
        """
        code, key = notice["code"], notice["fingerprint"]
        who = {"name": escaped(notice["name"]) or "?", "address": escaped(notice["address"])}
        if code == "access.pending":
            command = f"{command_name()} join approve {key}"
            self._say_tr(
                "{name} at {address} wants to join, key {key}; to let it in: {command}",
                key=key,
                command=command,
                **who,
            )
            return
        if code in _SAID_OF_CHANGES:
            self._say_tr(_SAID_OF_CHANGES[code], key=key, name=who["name"])
            return
        why = tr(_WHY_REFUSED.get(code, code))
        self._say_tr("refused: {name} at {address}, key {key}: {why}", key=key, why=why, **who)

    def stopping(self, within_s: float) -> None:
        """Say what a stop waits for."""
        self._say_tr(
            "stopping: REST requests under way are answered and what was accepted is written, "
            "{seconds} s at most; workers go on and come back to the next start",
            seconds=f"{within_s:.0f}",
        )

    def stopped(self) -> None:
        """Say that it has ended."""
        self._say_tr("orchestrator stopped")

    def _programs(self, url: str) -> str:
        """Return what programs that know an Ollama or OpenAI are told."""
        places = {"url": url, "openai": f"{url}/v1"}
        create = f"{command_name()} token create NAME"
        if self._config.mesh_key is not None:
            return tr(
                "OLLAMA_HOST={url} or base_url={openai}; elsewhere the API key is D8_MESH_KEY or "
                "a token: {create}",
                create=create,
                **places,
            )
        if self._config.join == JoinMode.APPROVE.value:
            return tr(
                "OLLAMA_HOST={url} or base_url={openai}; elsewhere the API key is a token: "
                "{create}",
                create=create,
                **places,
            )
        return tr("OLLAMA_HOST={url} or base_url={openai}, any API key", **places)

    def _what_it_takes(self) -> Iterator[str]:
        """Yield what another machine needs to come in; nothing if the mesh is open."""
        if self._config.mesh_key is not None:
            yield tr("other machines need the D8_MESH_KEY of this one")
        if self._config.join == JoinMode.APPROVE.value:
            program = command_name()
            yield tr(
                "a new machine waits until it is let in here: {approve} (who waits: {list})",
                approve=f"{program} join approve KEY",
                list=f"{program} join list",
            )

    def _hints(self, address: str, url: str, trust: str) -> Iterator[str]:
        if is_loopback(address):
            if self._config.web_host not in ANY_ADDRESS:
                yield tr("cannot reach it: it listens on this machine only")
            elif self._config.interfaces:
                yield tr("do not find it by themselves: D8_INTERFACES names this machine only")
            else:
                yield tr("cannot reach it now: this machine is in no network")
            return
        program, mesh = command_name(), self._config.mesh
        own_mesh = "" if mesh == Config().mesh else f"D8_MESH={mesh} "
        yield f"{own_mesh}{program} worker"
        hint = f"{own_mesh}{trust}ORCHESTRATOR_URL={url} {program} worker"
        yield tr("or, where it is not found by itself: {command}", command=hint)

    def _say_tr(self, text: str, /, **values: object) -> None:
        self._print(tr(text, **values))

    def _row(self, name: str, *values: str) -> None:
        for value in values:
            self._print(f"  {name + ':' if name else '':16} {value}")
            name = ""


def addresses_of(config: Config) -> Sequence[str]:
    """Return the addresses at which the REST of this machine can be opened."""
    host = config.web_host
    if host not in ANY_ADDRESS:
        return ["127.0.0.1" if host == "localhost" else host]
    found = [each.address for each in usable_addresses(config.interfaces)]
    return found[:MAX_NAMED_ADDRESSES] or ["127.0.0.1"]


def ending(code: int) -> str:
    """Return in words how a process ended."""
    if code >= 0:
        return tr("exit code {code}", code=code)
    try:
        return tr("killed by {signal}", signal=signal.Signals(-code).name)
    except ValueError:
        return tr("killed by {signal}", signal=f"signal {-code}")
