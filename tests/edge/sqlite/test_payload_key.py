"""The key file of payloads: made once, for one user, and refused when it is not as it should be."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from d8mesh.edge.sqlite.payload_key import PAYLOAD_KEY_FILE, kept_payload_key, payload_key_in
from d8mesh.errors import KeyFileError


def test_a_key_is_made_once_and_kept(tmp_path: Path) -> None:
    assert payload_key_in(tmp_path) is None
    key = kept_payload_key(tmp_path)
    assert (len(key), kept_payload_key(tmp_path), payload_key_in(tmp_path)) == (32, key, key)
    if sys.platform != "win32":
        assert stat.S_IMODE((tmp_path / PAYLOAD_KEY_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "payload 12", "x" * 5000, "secret " + "0" * 64])
def test_a_file_that_is_no_key_is_refused_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / PAYLOAD_KEY_FILE
    path.write_text(text, "utf-8")
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="expected a line 'payload'"):
        kept_payload_key(tmp_path)
    assert path.read_text("utf-8") == text
