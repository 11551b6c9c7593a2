"""What is told of services is plain data, as it goes over the wire."""

from __future__ import annotations

import msgspec

from d8mesh.core.broker.standings import (
    BudgetLeft,
    Decision,
    ModelView,
    Obstacle,
    ServiceView,
    Standing,
)


def test_what_is_told_travels_and_comes_back_the_same() -> None:
    standing = Standing(
        service="a", machine="pi5", kind="ollama", is_cloud=False, model="m",
        obstacle=Obstacle.LACKS, lacks=("tools",),
    )  # fmt: skip
    decision = Decision(
        task_id="t", attempt=1, service="a", model="m", at=1.0, waited_s=0.5,
        candidates=(standing,),
    )  # fmt: skip
    model = ModelView(name="m", budget=BudgetLeft(minute_requests=3))
    service = ServiceView(
        id="a", kind="ollama", machine="pi5", url="http://pi5:11434", is_cloud=False,
        workers=("w",), models=(model,),
    )  # fmt: skip
    for told in (decision, service):
        packed = msgspec.msgpack.encode(told)
        assert msgspec.msgpack.decode(packed, type=type(told)) == told


def test_each_obstacle_has_a_word_of_its_own() -> None:
    assert len({each.value for each in Obstacle}) == len(Obstacle)
    assert all(each.value.replace("_", "").isalpha() for each in Obstacle)
