"""Thoughts and fences around an answer go, and nothing of the answer."""

from __future__ import annotations

import time

import pytest

from d8mesh.handlers.thoughts import unfenced, without_thoughts


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("x = 1", "x = 1"),
        ("<think>hm</think>\n\nx = 1", "x = 1"),
        ("\n<think>\nhm\n</think>x = 1", "x = 1"),
        ("<THINK>hm</Think> x", "x"),
        ("<think>a</think><think>b</think>\r\nx", "x"),
        ("<thinking>hm</thinking>x", "x"),
        ("the user wants x\n</think>\n\nx = 1", "x = 1"),
        ("the user wants x</think>x = 1", "x = 1"),
        ("</think>x", "x"),
        ("hm\r\n</think>\r\n\r\nx = 1\r\n", "x = 1\r\n"),
        ("<think>and then the tokens were used up", ""),
        ("a = text.split('</think>')[1]", "a = text.split('</think>')[1]"),
        ("```py\nprint(1) # </think>\n```", "```py\nprint(1) # </think>\n```"),
        ("say <think>hm</think> aloud", "say <think>hm</think> aloud"),
        ("<think>hm</think>a = '</think>'", "a = '</think>'"),
        ("", ""),
    ],
)
def test_thoughts_before_the_answer_go(text: str, answer: str) -> None:
    assert without_thoughts(text) == answer


def test_thoughts_without_number_go_in_one_pass() -> None:
    started = time.process_time()
    assert without_thoughts("<think>a</think>\n" * 300_000 + "x") == "x"
    assert time.process_time() - started < 10  # the rest copied each time: minutes


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```py\r\nx = 1\r\n```", "x = 1"),
        ("```py\r\nx = 1\r\ny = 2\r\n```\r\n", "x = 1\r\ny = 2"),
        ("~~~\nx = 1\n~~~", "x = 1"),
        ("````md\n```py\nx\n```\n````", "```py\nx\n```"),
        ("so they want code</think>\n```py\nx = 1\n```", "x = 1"),
        ("```py\n```", ""),
        ("```py x = 1```", "```py x = 1```"),
        ("```py\nx = 1", "```py\nx = 1"),
    ],
)
def test_one_fence_around_all_goes(text: str, code: str) -> None:
    assert unfenced(text) == code
