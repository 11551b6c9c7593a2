"""What `batch` remembers beside its answers, and what it says when that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from d8mesh.apps.batch_state import held, new_state, numbers_in, ranges_of, save, state_of
from d8mesh.errors import ConfigError

OPTIONS = {"model": "m", "order": "input"}


def begun(out: Path) -> None:
    out.write_text("")
    save(out, new_state("digest", 3, OPTIONS))


def test_a_batch_goes_on_with_the_run_that_began_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert state_of(out, "digest", 3, OPTIONS) is None
    begun(out)
    first, again = (state_of(out, "digest", 3, OPTIONS) for _ in range(2))
    assert first is not None
    assert first == again


@pytest.mark.parametrize(
    ("digest", "count", "options", "told"),
    [
        ("digest", 4, OPTIONS, "it had 3 lines and has 4"),
        ("other", 3, OPTIONS, "some of its lines have changed"),
        ("digest", 3, {"model": "", "order": "input"}, "--model was 'm' and is 'not given'"),
    ],
)
def test_what_does_not_fit_is_said_with_what_to_do(
    tmp_path: Path, digest: str, count: int, options: dict[str, str], told: str
) -> None:
    out = tmp_path / "out"
    begun(out)
    with pytest.raises(ConfigError) as caught:
        state_of(out, digest, count, options)
    assert told in str(caught.value)
    assert "remove out and out.d8batch to begin anew" in str(caught.value)


def test_without_its_answers_a_batch_begins_anew(tmp_path: Path) -> None:
    out = tmp_path / "out"
    begun(out)
    out.unlink()
    assert state_of(out, "other", 4, OPTIONS) is None


def test_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="no `batch` has begun"):
        state_of(out, "digest", 3, OPTIONS)


def test_a_state_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "out.d8batch").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        state_of(tmp_path / "out", "digest", 3, OPTIONS)


def test_only_one_process_writes_a_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held(out), pytest.raises(ConfigError, match="another `batch`"), held(out):
        pass
    with held(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_each_time_of_asking_has_its_key_and_its_rows() -> None:
    state = new_state("digest", 9, {})
    state.retries = ["2,5-7", "6"]
    assert list(state.rounds()) == [
        (state.run, None),
        (f"{state.run}/again-1", {2, 5, 6, 7}),
        (f"{state.run}/again-2", {6}),
    ]


@pytest.mark.parametrize("numbers", [[3], [1, 2, 3], [1, 3, 4, 9]])
def test_ranges_are_read_as_they_were_written(numbers: list[int]) -> None:
    assert list(numbers_in(ranges_of(numbers))) == numbers
