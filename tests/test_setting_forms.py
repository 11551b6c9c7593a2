"""How the text of a setting is read."""

from __future__ import annotations

import re

import pytest

from d8mesh import setting_forms as forms


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (forms.integer(1, 9), "7", 7),
        (forms.number(0, 2), "0.5", 0.5),
        (forms.switch, "1", True),
        (forms.names("[a-z]+"), "a, b", ("a", "b")),
        (forms.tls, "AUTO", "auto"),
        (forms.tls, "cert.pem, key.pem", "cert.pem,key.pem"),
    ],
)
def test_a_text_of_its_form_is_read(parse: forms.Parser, text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (forms.integer(1, 9), "10"),
        (forms.number(0, 2), "nan"),
        (forms.switch, "maybe"),
        (forms.tls, "cert.pem"),
        (forms.tls, "a,b,c"),
        (forms.tls, "cert.pem,"),
        (forms.tls, "a\n,b"),
    ],
)
def test_a_text_of_another_form_is_refused(parse: forms.Parser, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        parse(text)
