"""Who may be contacted by a worker or client, and what is said of those who may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from d8mesh.config import Config
from d8mesh.core.protocol import pinning
from d8mesh.core.protocol.membership import announced_proof, fingerprint
from d8mesh.core.protocol.pinning import Pin
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.edge import address_file
from d8mesh.edge.pins import PinFile
from d8mesh.errors import ConfigError
from d8mesh.nodes.reconnector import trust as trusting
from d8mesh.nodes.reconnector.trust import MAX_STRANGE, OrchestratorTrust
from d8mesh.program import command_name

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
SECRET = b"s" * 32


def who(key: bytes | None, broker_id: str = "orch", proof: bytes = b"") -> KnownBroker:
    return KnownBroker(broker_id, ("10.0.0.1",), 7010, 7001, key, proof)


def trust_in(folder: Path, secret: bytes | None = None, mesh: str = "m") -> OrchestratorTrust:
    return OrchestratorTrust(Config(mesh=mesh, data_dir=str(folder)), secret)


def test_the_first_that_answers_is_known_from_then_on_and_another_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trust = trust_in(tmp_path)
    assert trust.may_contact(who(A))
    assert not trust.may_contact(who(B)), "it is not its turn"
    assert trust.strangers == []
    trust.welcomed(A, "orch")
    for _ in range(3):
        assert not trust.may_contact(who(B, "rogue"))
    (told,) = trust.strangers
    for part in ("rogue at 10.0.0.1 port 7010", fingerprint(A), fingerprint(B), "'m'"):
        assert part in told
    assert told.endswith(f"D8_MESH=m {command_name()} join trust {fingerprint(B)}")
    assert len([each for each in caplog.messages if "orchestrator.strange" in each]) == 1
    assert trust_in(tmp_path).may_contact(who(A))
    assert not trust_in(tmp_path).may_contact(who(B))
    assert trust_in(tmp_path, mesh="another").may_contact(who(B))


def test_what_a_person_trusts_while_it_runs_is_contacted(tmp_path: Path) -> None:
    trust = trust_in(tmp_path)
    trust.welcomed(A, "orch")
    assert not trust.may_contact(who(B))
    PinFile(tmp_path).add("m", Pin(fingerprint(B)))
    assert trust.may_contact(who(B))
    assert trust.strangers == []
    trust.welcomed(B, "second")
    assert [pin.key for pin in PinFile(tmp_path).of("m")] == [A, B]
    assert trust.may_contact(who(A))


def test_with_a_mesh_key_an_orchestrator_that_was_installed_anew_is_back_by_itself(
    tmp_path: Path,
) -> None:
    trust = trust_in(tmp_path, SECRET)
    assert trust.may_contact(who(A, proof=announced_proof(SECRET, A)))
    trust.welcomed(A, "orch")
    assert not trust.may_contact(who(B, "rogue"))
    assert not trust.may_contact(who(A))
    assert "does not know the D8_MESH_KEY of this machine" in trust.strangers[0]
    assert trust.may_contact(who(B, "anew", announced_proof(SECRET, B)))


def test_the_orchestrator_of_the_own_folder_and_a_given_key_are_trusted(tmp_path: Path) -> None:
    trust = trust_in(tmp_path)
    trust.welcomed(A, "orch")
    assert not trust.may_contact(who(B))
    (tmp_path / address_file.FOLDER).mkdir()
    address_file.write(tmp_path / address_file.FOLDER, who(B), "m")
    assert trust.may_contact(who(B, "as mDNS tells of it"))
    assert not trust.may_contact(who(C))
    trust.give(C)
    assert trust.may_contact(who(C))
    assert not trust.may_contact(who(None))
    assert "older version" in trust.strangers[0]


def test_where_a_key_is_given_no_other_is_the_first_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    trust = trust_in(tmp_path)
    trust.give(A)
    assert not trust.may_contact(who(B))
    assert trust.may_contact(who(A))
    trust.welcomed(A, "orch")
    assert PinFile(tmp_path).of("m") == ()


def test_what_is_only_remembered_is_passed_over_in_silence(tmp_path: Path) -> None:
    trust = trust_in(tmp_path)
    trust.welcomed(A, "orch")
    assert not trust.may_contact(who(B), is_heard=False)
    assert trust.strangers == []


def test_where_the_first_does_not_answer_another_is_tried(tmp_path: Path) -> None:
    trust = trust_in(tmp_path)
    assert trust.may_contact(who(A))
    trust.answered(A)
    assert not trust.may_contact(who(B))
    trust.unreachable(A)
    assert trust.may_contact(who(B))


@pytest.mark.parametrize("is_same_process", [True, False])
def test_of_two_that_were_contacted_while_nothing_was_known_the_first_to_answer_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_same_process: bool
) -> None:
    monkeypatch.setattr(pinning, "FIRST_CONTACT_S", 0.0)  # the first has not answered in time
    one = trust_in(tmp_path)
    other = one if is_same_process else trust_in(tmp_path)
    assert one.may_contact(who(A))
    assert other.may_contact(who(B))
    assert other.welcomed(B, "quick")
    assert not one.welcomed(A, "late")
    assert [pin.key for pin in PinFile(tmp_path).of("m")] == [B]
    assert not one.may_contact(who(A))
    PinFile(tmp_path).add("m", Pin(fingerprint(A)))
    assert one.welcomed(A, "late, and trusted by a person")


def test_one_that_a_person_has_named_comes_first_where_nothing_is_known(tmp_path: Path) -> None:
    config = Config(mesh="m", data_dir=str(tmp_path))
    trust = OrchestratorTrust(config, None, is_one_named=True)
    assert not trust.may_contact(who(A)), "heard before the named one has answered"
    trust.prefer(B)
    assert trust.may_contact(who(B))
    assert not trust.may_contact(who(A))
    trust.welcomed(B, "named")
    assert not trust.may_contact(who(A))
    trust.prefer(A)
    assert not trust.may_contact(who(A)), "where one is known, a name is a hint"


def test_a_flood_of_made_up_orchestrators_fills_neither_log_nor_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust = trust_in(tmp_path)
    trust.welcomed(A, "orch")
    for n in range(1000):
        trust.may_contact(who(n.to_bytes(32)))
    assert len(trust.strangers) == MAX_STRANGE
    assert len([each for each in caplog.messages if "orchestrator.strange" in each]) == MAX_STRANGE
    monkeypatch.setattr(trusting, "STRANGE_S", -1.0)  # they have fallen silent
    assert trust.strangers == []
    trust.may_contact(who(B, "new"))
    assert "new" in list(trust._strangers.values())[-1].text
    assert len(trust._strangers) == MAX_STRANGE


def test_a_pin_that_the_disk_does_not_take_holds_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: PinFile, mesh: str, pin: Pin) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PinFile, "add", full)
    trust = trust_in(tmp_path)
    trust.welcomed(A, "orch")
    assert not trust.may_contact(who(B))
    assert trust.may_contact(who(A))


def test_a_damaged_file_stops_the_start_and_not_what_runs(tmp_path: Path) -> None:
    trust = trust_in(tmp_path)
    trust.welcomed(A, "orch")
    assert trust.may_contact(who(A))
    (tmp_path / "pins.json").write_text("{")
    assert trust.may_contact(who(A))
    assert not trust.may_contact(who(B))
    with pytest.raises(ConfigError, match="is no list of keys"):
        trust_in(tmp_path)
