"""The child that has a model in memory: who gets it, and when it is started anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from d8mesh.backends.embedded import host as module
from d8mesh.backends.embedded.catalogue import GgufFiles, GgufModel
from d8mesh.backends.embedded.host import Loan, ModelHost
from d8mesh.errors import TaskCancelledError
from tests.real_model import MODEL, model_file, needs_model

pytestmark = needs_model
PATIENCE_S = 100.0


@pytest.fixture
def host() -> Iterator[ModelHost]:
    made = ModelHost()
    yield made
    made.close()


@pytest.fixture
def models(tmp_path: Path) -> dict[str, GgufModel]:
    (tmp_path / "other.gguf").symlink_to(model_file())
    return GgufFiles(tmp_path).look().models


def loan(model: GgufModel, *, threads: int | None = 1) -> Loan:
    return Loan(
        model=model, context=512, threads=threads, load_within_s=PATIENCE_S, check=lambda: None
    )


def test_a_model_is_loaded_once_and_another_takes_its_place(
    host: ModelHost, models: dict[str, GgufModel]
) -> None:
    with host.lend(loan(models[MODEL])) as first:
        assert first.load_s > 0
        with host.lend(loan(models[MODEL])) as second:
            assert (second.process, second.load_s) == (first.process, 0.0)
    with host.lend(loan(models["other"])) as third:
        assert third.load_s > 0
        assert third.process.model == "other"
        assert not first.process.is_alive


def test_a_request_for_another_model_waits_until_those_that_run_have_ended(
    host: ModelHost, models: dict[str, GgufModel]
) -> None:
    got: list[str] = []
    is_waiting = threading.Event()

    def check() -> None:
        is_waiting.set()

    def take() -> None:
        asked = Loan(
            model=models["other"], context=512, threads=1, load_within_s=PATIENCE_S, check=check
        )
        with host.lend(asked) as lent:
            got.append(lent.process.model)

    with host.lend(loan(models[MODEL])) as first:
        other = threading.Thread(target=take)
        other.start()
        assert is_waiting.wait(PATIENCE_S)
        assert first.process.is_alive
        assert got == []
    other.join(PATIENCE_S)
    assert got == ["other"]


def test_who_wants_it_no_longer_leaves_the_line(
    host: ModelHost, models: dict[str, GgufModel]
) -> None:
    def unwanted() -> None:
        raise TaskCancelledError

    gone = Loan(
        model=models["other"], context=512, threads=1, load_within_s=PATIENCE_S, check=unwanted
    )
    with host.lend(loan(models[MODEL])) as first:
        with pytest.raises(TaskCancelledError), host.lend(gone):
            pytest.fail("it was lent")
        with host.lend(loan(models[MODEL])) as second:
            assert second.process is first.process


def test_after_a_slow_answer_the_threads_follow_the_cores_that_are_free(
    host: ModelHost, models: dict[str, GgufModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "threads_now", lambda: 2)
    monkeypatch.setattr(module, "QUICK_LOAD_S", PATIENCE_S)
    with host.lend(loan(models[MODEL], threads=None)) as first:
        assert first.process.order.threads == 2
    monkeypatch.setattr(module, "threads_now", lambda: 1)
    host.note_speed(first.process, 100.0)
    host.note_speed(first.process, 90.0)
    with host.lend(loan(models[MODEL], threads=None)) as second:
        assert second.process is first.process
    host.note_speed(first.process, 40.0)
    with host.lend(loan(models[MODEL], threads=None)) as third:
        assert third.process.order.threads == 1
        assert not first.process.is_alive
