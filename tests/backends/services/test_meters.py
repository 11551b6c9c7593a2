"""What errors say of a service, and that figures are told before the error is."""

from __future__ import annotations

import pytest

from d8mesh import errors
from d8mesh.backends.services.meters import MAX_PAUSED_CHARS, Figures, Meters, end_of, reason_of
from d8mesh.core.protocol.chat import Timing, Usage
from d8mesh.core.worker.model_meter import RunEnd


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (errors.BackendError(), RunEnd.FAILED),
        (errors.BackendStalledError(), RunEnd.FAILED),
        (errors.BackendAnswerError(), RunEnd.FAILED),
        (errors.BackendUnavailableError(), RunEnd.FAILED),
        (errors.BackendBusyError(), RunEnd.FULL),
        (errors.BackendMemoryError(), RunEnd.NO_ROOM),
        (errors.BackendDeadlineError(), RunEnd.LATE),
        (errors.BackendTooLargeError(), RunEnd.OURS),
        (errors.InvalidTaskError(), RunEnd.OURS),
        (errors.TaskCancelledError(), RunEnd.OURS),
        (KeyboardInterrupt(), RunEnd.OURS),
    ],
)
def test_an_error_tells_whose_fault_it_is(error: BaseException, end: RunEnd) -> None:
    assert end_of(error) is end


def test_a_reason_is_one_bounded_sentence() -> None:
    assert reason_of(errors.BackendError("it broke")) == "it broke"
    assert reason_of(ValueError("x")) == "ValueError: x"
    assert len(reason_of(errors.BackendError("x" * 999))) == MAX_PAUSED_CHARS


class Scene:
    """Meters with a clock, and what was told in between."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[Figures] = []
        self.meters = Meters(self.changed, clock=lambda: self.now)
        self.meters.keep(["m"], anew=[])

    def changed(self, name: str) -> None:
        assert name == "m"
        self.told.append(self.meters.figures("m"))

    def answered(self) -> None:
        with self.meters.measured("m") as run:
            self.now += 1
            run.hear()
            run.hear()
            self.now += 2
            run.answered(Usage(10, 20), Timing(load_s=0.5, prompt_s=0.5, output_s=2))


def test_a_request_is_counted_and_told_at_its_first_token_and_its_end() -> None:
    scene = Scene()
    scene.answered()
    first, last = scene.told
    assert (first.slots, first.in_flight) == (2, 1)
    assert (last.slots, last.in_flight, last.requests) == (1, 0, 1)
    assert (last.prompt_tokens_per_s, last.output_tokens_per_s, last.load_s) == (20, 10, 0.5)


def test_what_changes_no_slots_is_told_at_the_end_of_a_request_alone() -> None:
    scene = Scene()
    scene.meters.keep(["m"], anew=["m"], slots=3)
    scene.answered()
    assert [told.in_flight for told in scene.told] == [0]


def test_a_failure_is_told_before_it_is_raised_further() -> None:
    scene = Scene()
    with pytest.raises(errors.BackendError):
        with scene.meters.measured("m"):
            raise errors.BackendError("it broke")
    assert [told.paused for told in scene.told] == ["it broke"]
    assert scene.meters.due() == []
    assert scene.meters.next_change_s(10) == 1
    scene.now += 1
    assert scene.meters.due() == ["m"]
    scene.meters.probed("m", errors.BackendMemoryError("no room"))
    assert scene.meters.next_change_s(9999) == 600
    scene.meters.probed("m")
    assert scene.meters.figures("m").paused == ""


def test_only_a_services_own_fault_pauses_beside_a_request() -> None:
    scene = Scene()
    scene.meters.failed("m", errors.BackendBusyError("full"))
    assert scene.meters.figures("m").paused == ""
    scene.meters.failed("m", errors.BackendMemoryError("no room"))
    assert scene.meters.figures("m").paused == "no room"


def test_models_that_are_gone_are_forgotten_and_new_ones_begin_anew() -> None:
    scene = Scene()
    scene.answered()
    scene.meters.keep(["m", "n"], anew=[], slots=4)
    assert (scene.meters.figures("m").requests, scene.meters.figures("n").slots) == (1, 4)
    scene.meters.keep(["m"], anew=["m"])
    assert scene.meters.figures("m").requests == 0
    assert scene.meters.figures("n") == Figures()


def test_a_model_that_nobody_knows_is_measured_nowhere() -> None:
    scene = Scene()
    scene.meters = Meters(lambda name: None, clock=lambda: scene.now)
    scene.meters.keep(["m"], anew=[])
    with scene.meters.measured("unknown") as run:
        run.hear()
    scene.meters.probed("unknown")
    scene.meters.loaded("unknown", 1.0)
    assert scene.meters.load_s("unknown") == 0
    scene.meters.loaded("m", 3.0)
    scene.meters.came_back()
    assert scene.meters.load_s("m") == 3
