"""The certificate of the REST port: made once by ourselves, or files of a person.

One of our own has no end and is never made anew by itself: whoever trusts it by its fingerprint, or
by a copy of its file, is never locked out, whatever the clocks say.

Source: RFC 5280, section 4.1.2.5 (99991231235959Z: no end); ``docs/SECURITY.md``, section TLS
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import ssl
import stat
import sys
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from d8mesh.config import Config
from d8mesh.errors import ConfigError, KeyFileError
from d8mesh.private import refuse_shared, sync_names, write_new

if TYPE_CHECKING:
    from cryptography import x509

#: Where our own lies, in the orchestrator's data folder.
TLS_FOLDER: Final = "tls"
CERTIFICATE_FILE: Final = "certificate.pem"
PRIVATE_KEY_FILE: Final = "key.pem"
#: Files of a certificate are a few kilobytes; with all authorities above it some tens.
MAX_PEM_BYTES: Final = 1024 * 1024
#: Names and addresses in our own certificate: more than a machine has.
MAX_CERTIFIED_NAMES: Final = 64
#: From when on it is good, and until when: in all times that a clock may show.
_BEGIN: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ENDLESS: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_HOW: Final = "D8_TLS=auto makes a pair that needs no care"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate (with those of the authorities above it, perhaps) and its secret key."""

    certificate: Path
    key: Path

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the certificate, 64 hex digits.

        Raises:
            ConfigError: the file cannot be read, or has none.
        """
        text = _read(self.certificate).decode("ascii", "replace")
        try:
            begin = text.index(ssl.PEM_HEADER)
            end = text.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)
            return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text[begin:end])).hexdigest()
        except ValueError as error:
            raise ConfigError(f"D8_TLS: {self.certificate} holds no certificate (PEM)") from error


def shown_fingerprint(fingerprint: str) -> str:
    """Return a fingerprint as browsers and openssl show it: ``AB:CD:…``."""
    pairs = [fingerprint[at : at + 2] for at in range(0, len(fingerprint), 2)]
    return ":".join(pairs).upper()


def files_of(config: Config) -> TlsFiles | None:
    """Return the files that D8_TLS names, whether they are there or not; None: plain HTTP."""
    if not config.tls:
        return None
    if config.tls == "auto":
        folder = _own_folder(config)
        return TlsFiles(folder / CERTIFICATE_FILE, folder / PRIVATE_KEY_FILE)
    certificate, _, key = config.tls.partition(",")
    return TlsFiles(Path(certificate).expanduser(), Path(key).expanduser())


def prepared(config: Config, names: Collection[str]) -> TlsFiles | None:
    """Return the files that D8_TLS names, sound; our own are made if there are none.

    Args:
        names: names and addresses of this machine, for a certificate of our own.

    Raises:
        ConfigError: they cannot be used; it says why and what to do.
    """
    files = files_of(config)
    if files is None:
        return None
    if config.tls == "auto":
        folder = _own_folder(config)
        try:
            if not folder.exists():
                _make(folder, names)
            refuse_shared(
                files.key,
                files.key.stat().st_mode,
                f"delete {folder} instead: another pair, with another fingerprint, is made at the "
                "next start",
            )
        except OSError as error:
            told = f"D8_TLS=auto: {error.filename or folder}: {error.strerror or error}"
            if folder.exists():
                told += (
                    f". Bring it back from a copy, or delete {folder}: another pair is made, with "
                    "another fingerprint"
                )
            raise ConfigError(told) from error
    server_context(files)
    if config.tls != "auto":
        _refuse_public(files.key)
    until = _certificate_in(files.certificate).not_valid_after_utc
    if until < datetime.now(UTC):
        raise ConfigError(
            f"D8_TLS: {files.certificate} has expired on {until:%Y-%m-%d}: renew it, or {_HOW}"
        )
    return files


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return what a server needs for HTTPS with these files.

    Raises:
        ConfigError: one of them cannot be used, or the key is another certificate's.
    """
    for each in (files.certificate, files.key):
        _read(each)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.certificate, files.key, _no_password)
    except _PasswordWantedError as error:
        raise ConfigError(f"D8_TLS: {files.key} has a password: expected one without") from error
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = f"{files.key} is not the key of {files.certificate}"
        else:
            why = f"expected a certificate in {files.certificate} and its key in {files.key} (PEM)"
        raise ConfigError(f"D8_TLS: {why}; {_HOW}") from error
    return context


class _PasswordWantedError(Exception):
    """The key is encrypted: OpenSSL would ask on the terminal."""


def _no_password() -> bytes:
    raise _PasswordWantedError


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"D8_TLS: {path}: {error.strerror or error}; {_HOW}") from error
    if len(content) > MAX_PEM_BYTES:
        raise ConfigError(f"D8_TLS: {path} has more than {MAX_PEM_BYTES} bytes: is it a PEM file?")
    return content


def _own_folder(config: Config) -> Path:
    return Path(config.data_dir) / "orchestrator" / TLS_FOLDER


def _refuse_public(key: Path) -> None:
    """Refuse a key of a person's that every user can read; a group of its own may, as on Debian."""
    mode = stat.S_IMODE(key.stat().st_mode)
    if sys.platform != "win32" and mode & stat.S_IRWXO:
        raise KeyFileError(
            f"D8_TLS: {key}: every user of this machine can read it (mode {mode:04o}). Run: "
            f"chmod o= {key}. If somebody else may have read it, get another pair"
        )


def _certificate_in(path: Path) -> x509.Certificate:
    from cryptography import x509  # slow to import, and wanted with D8_TLS only

    content = _read(path)
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise ConfigError(f"D8_TLS: {path} holds no certificate (PEM): {error}") from error


def _make(folder: Path, names: Collection[str]) -> None:
    """Make a pair; of two that do so at the same time the folder has one's, whole."""
    certificate, key = _new_pair(names)
    fresh = folder.with_name(f"{folder.name}.{secrets.token_hex(8)}")
    fresh.mkdir(mode=0o700, parents=True)
    try:
        for name, content in ((PRIVATE_KEY_FILE, key), (CERTIFICATE_FILE, certificate)):
            write_new(fresh / name, content)
        sync_names(fresh)
        try:
            fresh.rename(folder)
            sync_names(folder.parent)  # else a power cut may have another pair made
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _new_pair(names: Collection[str]) -> tuple[bytes, bytes]:
    """Return a certificate for these names and its key, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "d8mesh orchestrator")])
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = dict.fromkeys(
        (
            *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        ),
        False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(own)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_ENDLESS)
        .add_extension(x509.SubjectAlternativeName(_certified(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(key_id, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False
        )
    )
    form, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    return (
        builder.sign(key, hashes.SHA256()).public_bytes(form),
        key.private_bytes(form, serialization.PrivateFormat.PKCS8, no_password),
    )


def _certified(names: Collection[str]) -> list[x509.GeneralName]:
    """Return what a certificate says that it is for: the names and addresses of a machine."""
    from cryptography import x509

    wanted = ["localhost", "127.0.0.1", "::1", *sorted(names)]
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(wanted):
        try:
            found.append(x509.IPAddress(ip_address(name.partition("%")[0])))
        except ValueError:
            if name.isascii() and name:
                found.append(x509.DNSName(name))
    return list(dict.fromkeys(found))[:MAX_CERTIFIED_NAMES]
