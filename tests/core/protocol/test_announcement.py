"""The TXT record: what we say is read back, and what is odd is refused."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.core.protocol.announcement import (
    MAX_TXT_BYTES,
    Announcement,
    NodeKind,
    Sighting,
    from_txt,
    to_txt,
)
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.errors import ProtocolError
from d8mesh.setting_forms import NAME_PATTERN

NAMES = st.from_regex(NAME_PATTERN, fullmatch=True).filter(str.isascii)
GOOD = ["id=n1", "boot=b1", "mesh=d8", "version=1.0", "web=7001"]


def packed(strings: list[str] | list[bytes]) -> bytes:
    raw = [text.encode() if isinstance(text, str) else text for text in strings]
    return b"".join(bytes([len(each)]) + each for each in raw)


def read(strings: list[str] | list[bytes], port: int = 7010) -> Sighting:
    return from_txt(NodeKind.ORCHESTRATOR, packed(strings), port=port, addresses=("10.0.0.1",))


KEYS = st.binary(min_size=32, max_size=32)


@given(
    said=st.builds(
        Announcement,
        kind=st.sampled_from(NodeKind),
        node_id=NAMES,
        boot_id=NAMES,
        mesh=NAMES,
        port=st.integers(1, 65535),
        web_port=st.none() | st.integers(1, 65535),
        version=st.just("0.1"),
        server_key=st.none() | KEYS,
        proof=st.just(b"") | KEYS,
        tls=st.just("") | KEYS.map(bytes.hex),
    )
)
def test_what_a_node_says_of_itself_is_read_back(said: Announcement) -> None:
    strings = [f"{key}={value}" for key, value in to_txt(said).items()]
    assert all(len(each) <= 255 for each in strings)
    heard = from_txt(said.kind, packed(strings), port=said.port)
    assert asdict(heard) == asdict(said) | {"addresses": ()}


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(txt: bytes) -> None:
    try:
        from_txt(NodeKind.WORKER, txt, port=1)
    except ProtocolError:
        return


def test_service_types_are_no_longer_than_allowed() -> None:
    for kind in NodeKind:
        label = kind.value.partition(".")[0]
        assert label[0] == "_"
        assert len(label) - 1 <= 15


def test_unknown_keys_are_left_for_later_versions() -> None:
    assert read([*GOOD, "colour=abc", "flag"]).web_port == 7001


@pytest.mark.parametrize(
    ("strings", "reason"),
    [
        ([], "TXT id="),
        (GOOD[:3], "TXT version="),
        ([*GOOD, "id=n2"], "twice"),
        ([*GOOD, "ID=n2"], "twice"),
        (["id=\x1b[31m", *GOOD[1:]], "TXT id="),
        (["id=" + "n" * 129, *GOOD[1:]], "TXT id="),
        ([*GOOD, "key=abc"], "TXT key='abc': expected 64 hex digits"),
        ([*GOOD, "key=" + "G" * 64], "TXT key="),
        ([*GOOD, "proof=" + "0" * 63], "TXT proof="),
        ([*GOOD, "tls=" + "0" * 66], "TXT tls="),
        ([*GOOD[:4], "web=0"], "TXT web="),
        ([*GOOD[:4], "web=65536"], "TXT web="),
        ([*GOOD[:4], "web=x"], "TXT web="),
        ([*GOOD, *["k" + str(n) + "=" + "x" * 200 for n in range(9)]], f"most {MAX_TXT_BYTES}"),
    ],
)
def test_an_odd_record_is_refused_with_its_reason(strings: list[str], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        read(strings)


def test_a_record_that_is_not_utf8_or_cut_off_is_refused() -> None:
    with pytest.raises(ProtocolError, match="UTF-8"):
        read([b"id=\xff\xfe", *(text.encode() for text in GOOD[1:])])
    with pytest.raises(ProtocolError, match="cut off"):
        from_txt(NodeKind.WORKER, packed(GOOD)[:-1], port=1)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(ProtocolError, match="port"):
        read(GOOD, port)


def test_strings_without_a_name_are_passed_over() -> None:
    assert read(["=odd", *GOOD]) == read(GOOD)


@pytest.mark.parametrize("web_port", [7001, None])
def test_the_record_has_the_rest_port_if_there_is_one(web_port: int | None) -> None:
    said = Announcement(
        kind=NodeKind.WORKER, node_id="n1", boot_id="b1", mesh="d8", port=7010, web_port=web_port,
        version="1.0",
    )  # fmt: skip
    pairs = {"id": "n1", "boot": "b1", "mesh": "d8", "version": "1.0"}
    assert to_txt(said) == (pairs if web_port is None else pairs | {"web": "7001"})
    assert read([f"{key}={value}" for key, value in to_txt(said).items()]).web_port == web_port


def test_a_sighting_says_where_its_orchestrator_is() -> None:
    assert read(GOOD).broker == KnownBroker("n1", ("10.0.0.1",), 7010, 7001)
    told = [*GOOD, "key=" + "6b" * 32, "proof=" + "70" * 32, "tls=" + "f0" * 32]
    where = ("n1", ("10.0.0.1",), 7010, 7001)
    assert read(told).broker == KnownBroker(*where, b"k" * 32, b"p" * 32, "f0" * 32)
