"""Files that were good once: each is read, or refused in one sentence with what to do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench.mutations import ODD_JSON, changed, spoiled
from d8mesh.config import Config
from d8mesh.core.broker.members_view import KeptMember, Membership
from d8mesh.core.protocol.access_tokens import AccessToken, TokenScope
from d8mesh.core.protocol.pinning import Pin
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.edge import address_file, env_file, members_file
from d8mesh.edge.pins import PinFile
from d8mesh.edge.sqlite import Journal
from d8mesh.edge.sqlite.outbox import OUTBOX_NAME, Outbox
from d8mesh.edge.token_file import TokenFile
from d8mesh.edge.transport.keys import kept_pair
from d8mesh.errors import (
    ConfigError,
    D8Error,
    JournalError,
    KeyFileError,
    OutboxBrokenError,
    WorkerError,
)

KEY: Final = bytes(range(32))
WRITTEN: Final = Path(__file__).parent.parent / "edge" / "sqlite" / "written"
quick = settings(
    deadline=None, max_examples=150, suppress_health_check=list(HealthCheck), database=None
)
slow = settings(quick, max_examples=25)


@dataclass(frozen=True)
class KindOfFile:
    """A file of ours: how a good one is made, how it is read, and what a bad one is."""

    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    refusal: type[D8Error] | None


def _address(folder: Path) -> Path:
    home = folder / address_file.FOLDER
    home.mkdir(exist_ok=True)
    own = KnownBroker("orch-1", ("10.0.0.1",), 7010, 7001, KEY, KEY, "ab" * 32)
    address_file.write(home, own, "m")
    return home / address_file.NAME


def _members(folder: Path) -> Path:
    rows = [
        KeptMember(key=KEY.hex(), standing=each, name="pc", worker_ids=("w",), since_at=1.0)
        for each in (Membership.ADMITTED, Membership.REVOKED)
    ]
    members_file.write(folder, rows)
    return folder / members_file.MEMBERS_NAME


def _pins(folder: Path) -> Path:
    pins = PinFile(folder)
    pins.add("m", Pin("aaaa-bbbb-cccc-dddd", None, "orch", 1.0))
    return pins.path


def _tokens(folder: Path) -> Path:
    token = AccessToken(name="t", digest="ab" * 32, scopes=(TokenScope.CHAT,), created_at=1.0)
    TokenFile(folder).add(token)
    (path,) = [each for each in folder.glob("*.json") if "usage" not in each.name]
    return path


def _key(folder: Path) -> Path:
    kept_pair(folder)
    (path,) = [each for each in folder.iterdir() if each.is_file()]
    return path


KINDS: Final[dict[str, KindOfFile]] = {
    "address file": KindOfFile(_address, lambda folder: address_file.read(folder, "m"), None),
    "members": KindOfFile(_members, members_file.read, ConfigError),
    "pins": KindOfFile(_pins, lambda folder: PinFile(folder).of("m"), ConfigError),
    "tokens": KindOfFile(_tokens, lambda folder: TokenFile(folder).tokens(), ConfigError),
    "key": KindOfFile(_key, kept_pair, KeyFileError),
}


def read(kind: KindOfFile, folder: Path) -> object:
    """Return what is read, None for a refusal in words, which names the file."""
    if kind.refusal is None:
        return kind.read(folder)
    told = ""
    try:
        return kind.read(folder)
    except kind.refusal as error:
        told = str(error)
    assert str(folder) in told
    return None


@pytest.mark.parametrize("name", KINDS)
@quick
@given(data=st.data())
def test_a_file_with_other_bytes_is_read_or_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    kind, folder = KINDS[name], tmp_path_factory.mktemp("file")
    path = kind.write(folder)
    good = path.read_bytes()
    how = data.draw(st.integers(0, 3))
    if how == 0:
        bad = data.draw(st.binary(max_size=400))
    elif how == 1 and good.lstrip()[:1] in (b"{", b"["):
        tree = spoiled(json.loads(good), data.draw(st.randoms(use_true_random=False)), ODD_JSON)
        bad = json.dumps(tree).encode("utf-8", "surrogatepass")
    else:
        bad = changed(good, data.draw(st.integers(0, 2**60)) | 4, (good,))
    path.write_bytes(bad)
    read(kind, folder)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 100, b"\xff\xfe\x00", b"[" * 200_000, b'{"a":' * 100_000, b"null", b"[]",
     b"{}", b"1e999", b'"\\ud800"', b"\xed\xa0\x80", b"9" * 10_000],
    ids=lambda content: repr(content[:8]),
)  # fmt: skip
def test_a_file_of_something_else_is_read_or_refused(
    name: str, content: bytes, tmp_path: Path
) -> None:
    KINDS[name].write(tmp_path).write_bytes(content)
    read(KINDS[name], tmp_path)


@quick
@given(
    lines=st.lists(
        st.one_of(
            st.text(max_size=60),
            st.builds(
                "{}={}".format,
                st.sampled_from(
                    ["D8_MESH", "FLASK_PORT", "D8_MESH_KEY", "D8_TLS", "D8_ORIGINS", "X"]
                ),
                st.text(max_size=40),
            ),
        ),
        max_size=6,
    ),
    tail=st.binary(max_size=20),
)
@example(lines=["D8_MESH='"], tail=b"\xff\xfe")
@example(lines=["D8_MESH=${D8_MESH}"], tail=b"")
@example(lines=["D8_MESH=" + "${A" * 500], tail=b"")
def test_38_any_env_file_is_read_or_refused_and_so_are_its_settings(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], tail: bytes
) -> None:
    path = tmp_path_factory.mktemp("env") / ".env"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass") + tail)
    told = ""
    try:
        found = env_file.read(path)
        Config.from_env(found)
    except ConfigError as error:
        told = str(error)
    secrets = [value for name, value in _pairs(lines) if name == "D8_MESH_KEY" and len(value) > 8]
    assert not any(secret in told for secret in secrets)


def _pairs(lines: list[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (each.partition("=") for each in lines)]


def _spoil(path: Path, good: bytes, places: list[tuple[int, bytes]], cut: int) -> None:
    content = bytearray(good)
    for at, value in places:
        content[at % len(content)] = value[0]
    path.write_bytes(bytes(content[: len(content) - cut % len(content)] if cut else content))


SPOILED = st.lists(st.tuples(st.integers(0, 2**30), st.binary(min_size=1, max_size=1)), max_size=8)


@slow
@given(places=SPOILED, cut=st.integers(0, 20_000))
@example(places=[(0, b"X")], cut=0)
@example(places=[], cut=0)
def test_a_damaged_journal_is_opened_or_refused_and_stays_where_it_is(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, bytes]], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    path = folder / "journal.db"
    good = gzip.decompress((WRITTEN / "journal.db.gz").read_bytes())
    _spoil(path, good, places, cut)
    size = path.stat().st_size
    try:
        journal = Journal(path)
        try:
            journal.restore()
        finally:
            journal.close()
    except JournalError:
        assert path.exists()
        assert path.stat().st_size >= min(size, 1)


@slow
@given(places=SPOILED, cut=st.integers(0, 20_000))
@example(places=[(0, b"X")], cut=0)
@example(places=[], cut=0)
def test_a_damaged_outbox_is_opened_or_refused_and_stays_where_it_is(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, bytes]], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("outbox")
    path = folder / OUTBOX_NAME
    good = gzip.decompress((WRITTEN / f"{OUTBOX_NAME}.gz").read_bytes())
    _spoil(path, good, places, cut)
    try:
        outbox = Outbox(folder)
        try:
            outbox.load()
        finally:
            outbox.close()
    except (OutboxBrokenError, WorkerError):
        assert path.exists()
