"""What `batch` takes: each form, and what is said of what is none of them."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from d8mesh.apps.batch_input import AskedRow, BatchInput, RowFault, Wishes
from d8mesh.errors import ConfigError


def given(tmp_path: Path, text: str, name: str = "in.jsonl", **wishes: Any) -> BatchInput:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return BatchInput(str(path), Wishes(**wishes))


def rows(given: BatchInput) -> list[AskedRow]:
    given.checked(lambda row: None)
    return [given.row(number, raw) for number, raw in given.rows()]


def asked(row: AskedRow) -> str:
    return str(row.body["messages"][-1]["content"])


def wrong(given: BatchInput) -> str:
    with pytest.raises(ConfigError) as caught:
        rows(given)
    return str(caught.value)


def test_a_plain_prompt_is_a_chat_with_what_else_it_says(tmp_path: Path) -> None:
    line = '{"prompt": "Hi", "id": 7, "system": "Be brief", "temperature": 0.5, "model": "m"}'
    (row,) = rows(given(tmp_path, line))
    assert (row.name, row.is_plain, row.body["model"]) == ("7", True, "m")
    assert row.body["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hi"},
    ]
    assert row.body["temperature"] == 0.5


def test_options_count_where_a_line_says_nothing(tmp_path: Path) -> None:
    text = '{"prompt": "a"}\n{"prompt": "b", "model": "own", "max_tokens": 9}\n'
    wishes: dict[str, Any] = {"model": "m", "system": "s", "max_tokens": 5, "schema": {"x": 1}}
    first, second = rows(given(tmp_path, text, **wishes))
    assert (first.body["model"], first.body["max_tokens"]) == ("m", 5)
    assert first.body["response_format"]["json_schema"]["schema"] == {"x": 1}
    assert first.body["messages"][0]["content"] == "s"
    assert (second.body["model"], second.body["max_tokens"]) == ("own", 9)


def test_a_line_as_openai_has_it_is_taken_as_it_is(tmp_path: Path) -> None:
    body = '{"model": "e", "input": "x"}'
    line = f'{{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {body}}}'
    (row,) = rows(given(tmp_path, line))
    assert (row.endpoint, row.is_plain, row.body) == (
        "/v1/embeddings",
        False,
        {"model": "e", "input": "x"},
    )


def test_a_table_has_odd_quoting_a_mark_of_the_encoding_and_line_ends_in_cells(
    tmp_path: Path,
) -> None:
    text = '\ufeffid,prompt\r\n1,"He said ""hi"",\r\nand left"\r\n\r\n2,plain; text\r\n'
    first, second = rows(given(tmp_path, text, "t.csv"))
    assert (first.name, asked(first)) == ("1", 'He said "hi",\r\nand left')
    assert (second.number, asked(second)) == (2, "plain; text")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_template_has_the_columns_of_a_table(tmp_path: Path, delimiter: str) -> None:
    text = f"text{delimiter}to{delimiter}max_tokens\nHola{delimiter}English{delimiter}12\n"
    template = "Translate {text} into {to} {{now}}"
    (row,) = rows(given(tmp_path, text, "t.csv", prompt=template))
    assert (asked(row), row.body["max_tokens"]) == ("Translate Hola into English {now}", 12)


def test_a_template_has_the_fields_of_lines_too(tmp_path: Path) -> None:
    (row,) = rows(given(tmp_path, '{"a": {"b": 1}, "c": 2}', prompt="look at {a}"))
    assert (asked(row), list(row.body)) == ('look at {"b":1}', ["messages"])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: saw '{', expected a JSON object"),
        ("[]", "line 2: saw '[]', expected a JSON object"),
        ('{"prompt": 5}', "line 2: prompt: saw 5"),
        ('{"x": 1}', "line 2: prompt: saw none"),
        ('{"prompt": "a", "id": []}', "line 2: id: expected a text"),
        ('{"prompt": "a", "system": 1}', "line 2: system"),
        ('{"custom_id": "", "body": {}}', "line 2: custom_id"),
        ('{"custom_id": "b", "body": []}', "line 2: body"),
        ('{"custom_id": "b", "body": {}, "url": "/x"}', "line 2: url: saw '/x'"),
        ('{"custom_id": "b", "body": {}, "method": "GET"}', "line 2: method: saw 'GET'"),
        ('{"prompt": "b", "id": "first"}', "line 2: the id 'first' is that of line 1 too"),
    ],
)
def test_a_wrong_line_is_told_with_its_number(tmp_path: Path, line: str, told: str) -> None:
    text = f'{{"prompt": "a", "id": "first"}}\n{line}\n'
    assert told in wrong(given(tmp_path, text))


def test_of_many_wrong_lines_the_first_are_told_and_how_many_there_are(tmp_path: Path) -> None:
    told = wrong(given(tmp_path, "{\n" * 30))
    assert "30 of 30 lines are wrong, nothing was sent" in told
    assert "and 20 more lines" in told
    assert told.count('{"prompt": "…"}') == 1


def test_what_the_check_finds_is_told_too(tmp_path: Path) -> None:
    def check(row: AskedRow) -> None:
        raise RowFault("temperature: expected a number")

    with pytest.raises(ConfigError, match="line 1: temperature"):
        given(tmp_path, '{"prompt": "a"}').checked(check)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there is nothing in it"),
        ("prompt,prompt\nx,y\n", "the column 'prompt' is there twice"),
        ("text\nx\n", "there is no column 'prompt' (there is: text)"),
        ('prompt\n"open\nx\n', "line 2: unexpected end of data: is a quote missing"),
        ("prompt\na,b\n", "line 2: 2 cells for 1 columns"),
        ("prompt,temperature\na,hot\n", "temperature: saw 'hot', expected a number"),
        ("prompt\n\n", "there is nothing in it"),
    ],
)
def test_a_wrong_table_is_told(tmp_path: Path, text: str, told: str) -> None:
    assert told in wrong(given(tmp_path, text, "t.csv"))


def test_a_table_that_is_no_utf_8_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"prompt\n\xff\n")
    assert "utf-8" in wrong(BatchInput(str(tmp_path / "t.csv"), Wishes()))


@pytest.mark.parametrize("prompt", ["none", "{", "{}", "{a!r}", "{a.b}", "{a:5}"])
def test_a_template_that_is_none_is_refused(tmp_path: Path, prompt: str) -> None:
    with pytest.raises(ConfigError, match="--prompt"):
        given(tmp_path, "a\n1\n", "t.csv", prompt=prompt)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "No such file" in wrong(BatchInput(str(tmp_path / "none"), Wishes()))


def test_standard_input_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "a"}\n')))
    found = BatchInput("-", Wishes())
    assert [asked(row) for row in rows(found)] == ["a"]
    assert [asked(row) for row in rows(found)] == ["a"]
    found.close()


def test_the_digest_is_that_of_the_rows(tmp_path: Path) -> None:
    def digest(text: str) -> tuple[int, str]:
        return given(tmp_path, text).checked(lambda row: None)

    assert digest('{"prompt": "a"}\n\n') == digest('{"prompt": "a"}')
    assert digest('{"prompt": "a"}') != digest('{"prompt": "b"}')
