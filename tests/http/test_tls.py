"""The certificate of the REST port: made, read, refused."""

from __future__ import annotations

import hashlib
import shutil
import ssl
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from d8mesh.config import Config
from d8mesh.errors import ConfigError, KeyFileError
from d8mesh.http.tls import (
    TlsFiles,
    files_of,
    prepared,
    server_context,
    shown_fingerprint,
)

NAMES = ["machine", "machine.local", "192.168.7.8", "fe80::1%eth0", "ñ", ""]


def auto(folder: Path) -> Config:
    return Config(data_dir=str(folder), tls="auto")


def made(folder: Path) -> TlsFiles:
    files = prepared(auto(folder), NAMES)
    assert files is not None
    return files


def pair(
    folder: Path, *, days: int = 1, password: bytes | None = None, name: str = "a"
) -> tuple[Path, Path]:
    """Write a person's pair that ends in `days`."""
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    until = datetime.now(UTC) + timedelta(days=days)
    certificate = (
        x509.CertificateBuilder(own, own, key.public_key(), x509.random_serial_number())
        .not_valid_before(until - timedelta(days=90))
        .not_valid_after(until)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    files = folder / f"{name}.crt", folder / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(form))
    pkcs8 = serialization.PrivateFormat.PKCS8
    files[1].write_bytes(key.private_bytes(form, pkcs8, encryption))
    files[1].chmod(0o600)
    return files


def given(certificate: Path, key: Path) -> Config:
    return Config(tls=f"{certificate},{key}")


def test_without_the_setting_there_is_none() -> None:
    assert prepared(Config(), NAMES) is None


def test_a_pair_is_made_once_and_kept(tmp_path: Path) -> None:
    first = made(tmp_path)
    content = first.certificate.read_bytes(), first.key.read_bytes()
    assert made(tmp_path) == first == files_of(auto(tmp_path))
    assert content == (first.certificate.read_bytes(), first.key.read_bytes())
    der = ssl.PEM_cert_to_DER_cert(content[0].decode())
    assert first.fingerprint == hashlib.sha256(der).hexdigest()
    assert [each.name for each in (tmp_path / "orchestrator").iterdir()] == ["tls"]


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_its_files_are_of_nobody_else(tmp_path: Path) -> None:
    files = made(tmp_path)
    assert files.key.stat().st_mode & 0o777 == 0o600
    assert files.key.parent.stat().st_mode & 0o777 == 0o700
    files.key.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        made(tmp_path)


def test_it_is_good_for_this_machine_at_all_times(tmp_path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(made(tmp_path).certificate.read_bytes())
    assert certificate.not_valid_before_utc.year == 1970
    assert certificate.not_valid_after_utc.year == 9999
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {
        "localhost", "machine", "machine.local",
    }  # fmt: skip
    found = {str(each) for each in names.get_values_for_type(x509.IPAddress)}
    assert found == {"127.0.0.1", "::1", "192.168.7.8", "fe80::1"}
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not basic.ca  # whoever trusts it trusts it for this machine alone


def test_of_many_that_make_one_at_the_same_time_all_get_the_same(tmp_path: Path) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(made(tmp_path).fingerprint)) for _ in range(6)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    assert [each.name for each in (tmp_path / "orchestrator").iterdir()] == ["tls"]


def test_files_of_a_person_are_taken_as_they_are(tmp_path: Path) -> None:
    certificate, key = pair(tmp_path)
    files = prepared(given(certificate, key), NAMES)
    assert files == TlsFiles(certificate, key)
    assert isinstance(server_context(files), ssl.SSLContext)


def test_a_clock_that_is_behind_refuses_nothing(tmp_path: Path) -> None:
    """A Raspberry Pi starts in the past; a certificate that is not good yet is good soon."""
    assert prepared(given(*pair(tmp_path, days=4000)), NAMES) is not None


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda c, k: c.unlink(), r"a\.crt: No such file"),
        (lambda c, k: k.unlink(), r"a\.key: No such file"),
        (lambda c, k: (c.unlink(), c.mkdir()), r"a\.crt: "),
        (lambda c, k: c.write_bytes(b""), "expected a certificate in .*a.crt and its key"),
        (lambda c, k: c.write_bytes(b"\xff" * 100), "expected a certificate"),
        (lambda c, k: k.write_text("-----BEGIN PRIVATE KEY-----\n"), "expected a certificate"),
        (lambda c, k: c.write_bytes(bytes(2 * 1024 * 1024)), "more than 1048576 bytes"),
        (lambda c, k: shutil.copy(pair(c.parent, name="b")[1], k), "a.key is not the key of"),
        (lambda c, k: pair(c.parent, days=-1), r"has expired on \d{4}-\d\d-\d\d: renew it, or"),
        (lambda c, k: pair(c.parent, password=b"secret"), "has a password: expected one without"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_sentence(
    spoil: Callable[[Path, Path], object], told: str, tmp_path: Path
) -> None:
    certificate, key = pair(tmp_path)
    spoil(certificate, key)
    with pytest.raises(ConfigError, match=told) as raised:
        prepared(given(certificate, key), NAMES)
    assert "\n" not in str(raised.value)
    assert "PRIVATE" not in str(raised.value)


@pytest.mark.skipif(sys.platform == "win32", reason="modes mean nothing there")
def test_a_key_of_a_person_that_every_user_can_read_is_refused(tmp_path: Path) -> None:
    certificate, key = pair(tmp_path)
    key.chmod(0o640)  # a group of its own, as `ssl-cert` is
    assert prepared(given(certificate, key), NAMES) is not None
    key.chmod(0o644)
    with pytest.raises(KeyFileError, match=f"chmod o= {key}"):
        prepared(given(certificate, key), NAMES)


def test_where_a_pair_cannot_be_made_nothing_is_to_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "orchestrator").write_text("no folder", "utf-8")
    with pytest.raises(ConfigError) as raised:
        made(tmp_path)
    assert "delete" not in str(raised.value)


def test_a_half_of_our_own_pair_is_not_made_up_for(tmp_path: Path) -> None:
    made(tmp_path).key.unlink()
    with pytest.raises(ConfigError, match=r"key\.pem: No such file.*or delete .*tls"):
        made(tmp_path)


def test_a_fingerprint_is_shown_as_others_show_it() -> None:
    assert shown_fingerprint("00ff1a") == "00:FF:1A"
    nowhere = Path(__file__).with_name("nowhere.pem")
    with pytest.raises(ConfigError, match="No such file"):
        assert TlsFiles(nowhere, nowhere).fingerprint
    with pytest.raises(ConfigError, match="holds no certificate"):
        assert TlsFiles(Path(__file__), Path(__file__)).fingerprint
