"""Payloads encrypted in place: AES-256-GCM, each one bound to the row and column that it stands in.

A sealed payload begins with a mark, the salt of the writer, and a counter. The writer's key is
derived from the key file and the salt, which every `Seal` draws anew: so no two writers share a
key, and within one the counter, which is the nonce, only rises. Nothing of it has to be kept, so a
process that was killed repeats none.

Source: https://www.rfc-editor.org/rfc/rfc5116 (AEAD), https://www.rfc-editor.org/rfc/rfc5869
(HKDF), NIST SP 800-38D 8.2.1 (deterministic construction of nonces)
"""

from __future__ import annotations

import base64
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # loaded only where payloads are sealed
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SEAL_KEY_BYTES: Final = 32
#: Begins what is sealed, and no msgpack. References to texts begin so too, and are shorter.
SEAL_MARK: Final = b"\xc1"
_SALT_BYTES: Final = 12
_COUNTER_BYTES: Final = 6
_NONCE_BYTES: Final = 12
_GCM_TAG_BYTES: Final = 16
_HEAD: Final = 1 + _SALT_BYTES + _COUNTER_BYTES
#: How much longer a payload is when it is sealed.
SEALED_BYTES: Final = _HEAD + _GCM_TAG_BYTES
#: Writers whose derived keys are remembered: a page of a listing may have payloads of many starts.
_REMEMBERED_WRITERS: Final = 64
#: Begins a sealed text.
_TEXT_MARK: Final = "\N{SECTION SIGN}"

#: The columns, as they are bound.
DATA_COLUMN: Final = b"data"
RESULT_COLUMN: Final = b"result"
REASON_COLUMN: Final = b"reason"
DIGEST_COLUMN: Final = b"digest"
CHECK_COLUMN: Final = b"check"


class SealError(ValueError):
    """It was sealed with another key, for another place, or was changed."""


def is_sealed(payload: bytes) -> bool:
    """Return whether a payload looks like one that is sealed."""
    return len(payload) >= SEALED_BYTES and payload[:1] == SEAL_MARK


def plain_bytes(payload: bytes) -> int:
    """Return how long a payload is when it is open."""
    return len(payload) - SEALED_BYTES if is_sealed(payload) else len(payload)


class Plain:
    """Payloads as they are: where nothing is encrypted, in the place of a `Seal`."""

    def close(self, column: bytes, row: bytes | int, payload: bytes) -> bytes:
        """Return the payload."""
        return payload

    def close_all(self, column: bytes, row: int, payloads: list[bytes]) -> list[bytes]:
        """Return the payloads."""
        return payloads

    def open(self, column: bytes, row: bytes | int, stored: bytes) -> bytes:
        """Return what is stored."""
        return stored

    def close_text(self, row: int, text: str) -> str:
        """Return the text."""
        return text

    def open_text(self, row: int, text: str) -> str:
        """Return the text."""
        return text


NO_SEAL: Final = Plain()


class Seal(Plain):
    """Seals and opens payloads with one key. Empty payloads stay empty.

    Args:
        key: as it stands in the key file.

    Thread: one at a time.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._ciphers: OrderedDict[bytes, AESGCM] = OrderedDict()
        salt = secrets.token_bytes(_SALT_BYTES)
        self._begins = SEAL_MARK + salt
        self._encrypt = self._cipher(salt).encrypt
        self._counter = 0

    def __repr__(self) -> str:
        return "Seal(…)"

    def close(self, column: bytes, row: bytes | int, payload: bytes) -> bytes:
        """Return a payload sealed for its place."""
        if not payload:
            return payload
        self._counter += 1
        nonce = self._counter.to_bytes(_NONCE_BYTES, "big")
        place = column + (row.to_bytes(8, "big") if isinstance(row, int) else row)
        return self._begins + nonce[-_COUNTER_BYTES:] + self._encrypt(nonce, payload, place)

    def close_all(self, column: bytes, row: int, payloads: list[bytes]) -> list[bytes]:
        """Return the payloads of consecutive rows, from `row` on, sealed for their places."""
        begins, encrypt, counter = self._begins, self._encrypt, self._counter
        sealed: list[bytes] = []
        for each, payload in enumerate(payloads, row):
            if payload:
                counter += 1
                nonce = counter.to_bytes(_NONCE_BYTES, "big")
                place = column + each.to_bytes(8, "big")
                payload = begins + nonce[-_COUNTER_BYTES:] + encrypt(nonce, payload, place)
            sealed.append(payload)
        self._counter = counter
        return sealed

    def open(self, column: bytes, row: bytes | int, stored: bytes) -> bytes:
        """Return what was sealed for this place.

        Raises:
            SealError: it was not, or not with this key.
        """
        if not stored:
            return stored
        if not is_sealed(stored):
            raise SealError("it is not encrypted")
        from cryptography.exceptions import InvalidTag

        counter = stored[1 + _SALT_BYTES : _HEAD]
        nonce = counter.rjust(_NONCE_BYTES, b"\0")
        place = column + (row.to_bytes(8, "big") if isinstance(row, int) else row)
        cipher = self._cipher(stored[1 : 1 + _SALT_BYTES])
        try:
            return cipher.decrypt(nonce, memoryview(stored)[_HEAD:], place)
        except InvalidTag:
            raise SealError("it does not fit the key, or was changed") from None

    def close_text(self, row: int, text: str) -> str:
        """Return a reason or traceback of a task sealed, as text."""
        sealed = self.close(REASON_COLUMN, row, text.encode("utf-8", "surrogatepass"))
        return _TEXT_MARK + base64.b64encode(sealed).decode("ascii") if sealed else ""

    def open_text(self, row: int, text: str) -> str:
        """Return a reason or traceback that was sealed; blanks, which overwrote one, as they are.

        Raises:
            SealError: it was not sealed for this task, or not with this key.
        """
        if not text.strip():
            return text
        if not text.startswith(_TEXT_MARK):
            raise SealError("it is not encrypted")
        try:
            sealed = base64.b64decode(text[1:], validate=True)
        except ValueError:  # not ASCII, or cut off
            sealed = b""
        if not sealed:
            raise SealError("it is cut off, or was changed")
        return self.open(REASON_COLUMN, row, sealed).decode("utf-8", "surrogatepass")

    def _cipher(self, salt: bytes) -> AESGCM:
        """Return the cipher of the writer that drew this salt."""
        cipher = self._ciphers.get(salt)
        if cipher is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF

            derived = HKDF(SHA256(), SEAL_KEY_BYTES, salt, b"d8mesh payload").derive(self._key)
            cipher = self._ciphers[salt] = AESGCM(derived)
            if len(self._ciphers) > _REMEMBERED_WRITERS:
                self._ciphers.popitem(last=False)
        return cipher


def seal_of(key: bytes | None) -> Plain:
    """Return what seals and opens with a key; without one nothing is."""
    return NO_SEAL if key is None else Seal(key)
