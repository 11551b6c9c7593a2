"""Whose pages may use a door, and what their browsers are told."""

from __future__ import annotations

import pytest

from d8mesh.http.origins import (
    Origins,
    is_preflight,
    no_origin,
    preflight_headers,
    shared_with,
)

ASKED = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "https://localhost:3000",
        "http://127.0.0.1:5173",
        "HTTP://LOCALHOST:1",
        "https://0.0.0.0",
        "http://[::1]:8080",
        "app://obsidian.md",
        "file://",
        "tauri://localhost",
        "vscode-webview://1k2j3",
        "vscode-file://vscode-app",
    ],
)
def test_the_pages_that_ollama_lets_in_are_let_in(origin: str) -> None:
    assert Origins()(origin)
    assert not no_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.com",
        "http://localhost.evil.com",
        "http://localhost:3000.evil.com",
        "http://evil.com:localhost",
        "http://localhost:3000/",
        "http://localhost@evil.com",
        "http://127.0.0.1.evil.com",
        "http://127.0.0.2",
        "http://192.168.1.9:3000",
        "ftp://localhost",
        "chrome-extension://abc",
        "xapp://a",
        "http://localhost\nhttp://localhost",
    ],
)
def test_other_pages_are_not(origin: str) -> None:
    assert not Origins()(origin)
    assert not Origins(("https://chat.example.org", "http://*.lan:*"))(origin)


@pytest.mark.parametrize(
    ("setting", "passes", "fails"),
    [
        ("https://chat.example.org", "https://CHAT.example.org", "http://chat.example.org"),
        ("https://chat.example.org", "https://chat.example.org", "https://chat.example.org:444"),
        ("https://a.example", "https://a.example", "https://axexample"),
        ("http://*.lan", "http://box.lan", "http://box.lan.evil.com"),
        ("http://*.lan:*", "http://a.b.lan:80", "http://evil.com/.lan:80"),
        ("chrome-extension://*", "chrome-extension://abc", "moz-extension://abc"),
        ("*", "https://anything.example:1", "null"),
    ],
)
def test_others_can_be_named(setting: str, passes: str, fails: str) -> None:
    origins = Origins((setting,))
    assert origins(passes)
    assert not origins(fails)
    assert origins("http://localhost:3000")


def test_a_preflight_is_an_options_that_names_its_page_and_its_method() -> None:
    assert is_preflight("OPTIONS", ASKED)
    assert not is_preflight("POST", ASKED)
    assert not any(is_preflight("OPTIONS", {name: ASKED[name]}) for name in ASKED)


def test_a_page_that_may_ask_may_send_any_header() -> None:
    wanted = "authorization,x-d8-priority,x-stainless-lang"
    found = preflight_headers(ASKED | {"access-control-request-headers": wanted})
    assert found["Access-Control-Allow-Headers"] == wanted
    for odd in ("", "a\r\nb: c", "x" * 5000):
        found = preflight_headers(ASKED | {"access-control-request-headers": odd})
        assert "Authorization" in found["Access-Control-Allow-Headers"]
        assert "x-stainless-retry-count" in found["Access-Control-Allow-Headers"]
    assert "DELETE" in found["Access-Control-Allow-Methods"]


def test_a_page_is_let_into_the_private_network_only_if_it_asks() -> None:
    name = "Access-Control-Allow-Private-Network"
    assert name not in preflight_headers(ASKED)
    asked = ASKED | {"access-control-request-private-network": "true"}
    assert preflight_headers(asked)[name] == "true"


def test_an_answer_names_the_page_that_may_see_it() -> None:
    found = shared_with("http://localhost:3000")
    assert found["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert found["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in found
