"""What the orchestrator says to who started it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from d8mesh import words
from d8mesh.config import Config
from d8mesh.edge.network import InterfaceAddress
from d8mesh.http.tls import shown_fingerprint
from d8mesh.processes import console as module
from d8mesh.processes.console import OrchestratorConsole, addresses_of, ending
from d8mesh.program import command_name
from tests.http.certified import certified


def made(config: Config, folder: Path) -> tuple[OrchestratorConsole, list[str]]:
    said: list[str] = []
    return OrchestratorConsole(config, folder, say=said.append), said


def with_addresses(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    found = tuple(InterfaceAddress("eth0", address) for address in addresses)
    monkeypatch.setattr(module, "usable_addresses", lambda interfaces: found)


def test_the_start_says_what_to_open_and_what_to_type_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_addresses(monkeypatch, "192.168.1.20", "10.0.0.4")
    console, said = made(Config(), tmp_path)
    console.started("orch-1", web_port=7001, broker_port=7010)
    here = "http://192.168.1.20:7001"
    elsewhere = f"ORCHESTRATOR_URL={here} {command_name()} worker"
    assert said == [
        "orchestrator orch-1 of mesh d8: REST on port 7001, workers on port 7010; Ctrl-C stops it",
        "  open:            http://192.168.1.20:7001/health",
        "                   http://10.0.0.4:7001/health",
        f"  programs:        OLLAMA_HOST={here} or base_url={here}/v1, any API key",
        f"  other machines:  {command_name()} worker",
        f"{' ' * 18} or, where it is not found by itself: {elsewhere}",
        f"  data:            {tmp_path}",
        f"  logs:            {tmp_path / 'logs'}",
    ]


def test_with_a_certificate_it_says_which_and_who_needs_what(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_addresses(monkeypatch, "192.168.1.20")
    console, said = made(Config(tls="auto"), tmp_path)
    tls = certified()
    console.started("orch-1", web_port=7001, broker_port=7010, tls=tls)
    here = "https://192.168.1.20:7001"
    assert f"  open:            {here}/health" in said
    assert f"  certificate:     SHA-256 {shown_fingerprint(tls.fingerprint)}" in said
    assert f"{' ' * 18} programs are to trust it: {tls.certificate.absolute()}" in said
    trusting = f"D8_TLS_TRUST={tls.fingerprint} ORCHESTRATOR_URL={here} {command_name()} worker"
    assert any(line.endswith(trusting) for line in said)


def test_programs_of_other_machines_need_the_key_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_addresses(monkeypatch, "192.168.1.20")
    console, said = made(Config(mesh_key="secret-secret-secret"), tmp_path)
    console.started("orch-1", web_port=7001, broker_port=7010)
    (line,) = [line for line in said if line.startswith("  programs:  ")]
    create = f"{command_name()} token create NAME"
    assert line.endswith(f"/v1; elsewhere the API key is D8_MESH_KEY or a token: {create}")
    assert "  closed:          other machines need the D8_MESH_KEY of this one" in said
    assert not any("secret" in line for line in said)


@pytest.mark.parametrize("is_on", [True, False])
def test_where_data_is_encrypted_it_says_where_the_key_is_and_to_keep_a_copy(
    is_on: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_addresses(monkeypatch, "192.168.1.20")
    console, said = made(Config(encrypt=is_on, data_dir=str(tmp_path)), tmp_path)
    console.started("orch-1", web_port=7001, broker_port=7010)
    lines = [line for line in said if "keep a copy" in line]
    file = tmp_path / "orchestrator" / "payload.key"
    assert [str(file) in line for line in lines] == [True] * is_on


def test_where_keys_are_approved_it_says_how_and_what_programs_need(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_addresses(monkeypatch, "192.168.1.20")
    console, said = made(Config(join="approve"), tmp_path)
    console.started("orch-1", web_port=7001, broker_port=7010)
    shown, program = "\n".join(said), command_name()
    assert "any API key" not in shown, "who shows any key from elsewhere is refused"
    assert f"/v1; elsewhere the API key is a token: {program} token create NAME" in shown
    (line,) = [line for line in said if line.startswith("  closed:  ")]
    assert f"{program} join approve KEY" in line
    assert f"{program} join list" in line


def test_a_mesh_of_another_name_is_part_of_what_to_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_addresses(monkeypatch, "192.168.1.20")
    console, said = made(Config(mesh="casa"), tmp_path)
    console.started("orch-1", web_port=7001, broker_port=7010)
    assert f"  other machines:  D8_MESH=casa {command_name()} worker" in said


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_what_listens_on_this_machine_only_says_so(host: str, tmp_path: Path) -> None:
    console, said = made(Config(web_host=host), tmp_path)
    console.started("orch-1", web_port=7001, broker_port=7010)
    assert any("cannot reach it" in line for line in said)
    assert not any("ORCHESTRATOR_URL" in line for line in said)


def test_what_listens_everywhere_does_not_say_that_nobody_reaches_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_addresses(monkeypatch, "127.0.0.1")
    for config, why in (
        (Config(interfaces=("lo",)), "do not find it by themselves: D8_INTERFACES names"),
        (Config(), "cannot reach it now: this machine is in no network"),
    ):
        console, said = made(config, tmp_path)
        console.started("orch-1", web_port=7001, broker_port=7010)
        (line,) = [line for line in said if line.startswith("  other machines:  ")]
        assert line.startswith(f"  other machines:  {why}")


def test_addresses_are_those_it_listens_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with_addresses(monkeypatch)
    assert addresses_of(Config()) == ["127.0.0.1"]
    assert addresses_of(Config(web_host="192.168.1.7")) == ["192.168.1.7"]


def test_a_child_that_fell_and_rose_is_told_with_why_and_how_long(tmp_path: Path) -> None:
    console, said = made(Config(), tmp_path)
    console.rose("web")
    assert said == [], "the first start is no news"
    console.fell("broker", -9, 0.0)
    console.fell("broker", 1, 1.0)
    console.rose("broker")
    console.rose("broker")
    assert said[:2] == [
        "the broker ended (killed by SIGKILL): it is started again at once",
        "the broker ended (exit code 1): it is started again in 1.0 s",
    ]
    assert len(said) == 3
    assert said[2].startswith("the broker is back after ")
    console.gave_up("web", 4)
    assert said[3] == "the REST process ended (exit code 4), and starting it again would not help"


def test_who_is_waited_for_is_told_with_how_long(tmp_path: Path) -> None:
    console, said = made(Config(), tmp_path)
    console.waiting(10.0)
    assert said == [
        "an earlier orchestrator of this folder is still ending: it is waited for, 10 s at most"
    ]


def test_an_ending_is_told_in_words() -> None:
    assert ending(3) == "exit code 3"
    assert ending(-signal.SIGTERM) == "killed by SIGTERM"
    assert ending(-200) == "killed by signal 200"


def test_it_speaks_spanish_too(tmp_path: Path) -> None:
    console, said = made(Config(web_host="127.0.0.1"), tmp_path)
    words.use("es")
    try:
        console.started("orch-1", web_port=7001, broker_port=7010)
        console.stopping(10.0)
        console.stopped()
    finally:
        words.use(words.ENGLISH)
    assert said[0].startswith("orquestador orch-1 de la malla d8: ")
    assert said[-1] == "orquestador parado"


KEY = "k3fq-2mzd-7xwa-pq4e"


def noticed(folder: Path, code: str, name: str = "pi") -> str:
    console, said = made(Config(), folder)
    notice = {"code": code, "address": "192.168.1.9", "fingerprint": KEY, "name": name}
    console.noticed(notice)
    (line,) = said
    return line


def test_who_wants_to_join_is_said_with_the_command_that_lets_it_in(tmp_path: Path) -> None:
    assert noticed(tmp_path, "access.pending") == (
        f"pi at 192.168.1.9 wants to join, key {KEY}; to let it in: "
        f"{command_name()} join approve {KEY}"
    )
    assert noticed(tmp_path, "access.pending", "").startswith("? at 192.168.1.9")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("access.key", "D8_MESH_KEY"),
        ("access.revoked", "revoked"),
        ("access.banned", "again and again"),
        ("access.address", "not a private one"),
        ("access.forbidden", "may not have"),
        ("access.other", "access.other"),
    ],
)
def test_who_is_refused_is_said_with_the_reason(tmp_path: Path, code: str, why: str) -> None:
    line = noticed(tmp_path, code)
    assert line.startswith(f"refused: pi at 192.168.1.9, key {KEY}: ")
    assert why in line


@pytest.mark.parametrize(
    ("action", "said"),
    [("approve", "may join now"), ("revoke", "its key was revoked"), ("forget", "is forgotten")],
)
def test_what_was_changed_is_said(tmp_path: Path, action: str, said: str) -> None:
    line = noticed(tmp_path, f"member.{action}")
    assert line.startswith(f"pi, key {KEY}, ")
    assert said in line


def test_a_name_does_nothing_to_the_terminal(tmp_path: Path) -> None:
    assert "\x1b" not in noticed(tmp_path, "access.pending", "\x1b[2Jpi")
