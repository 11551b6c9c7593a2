"""What is told of services: all of it at first, then what changes, together or at once."""

from __future__ import annotations

from d8mesh.core.protocol.messages import (
    MAX_NAMES,
    Budget,
    Described,
    Measured,
    Message,
    OfferedModel,
    OfferedService,
    Placement,
    Services,
)
from d8mesh.core.protocol.service_messages import MAX_DESCRIPTION_BYTES
from d8mesh.core.worker.broker_session import NEVER, BrokerSession
from d8mesh.core.worker.service_offer import TOLD_AGAIN_S, TOLD_TOGETHER_S, ServiceOffer


def service(name: str, *models: OfferedModel) -> OfferedService:
    first = models[0].name if models else ""
    return OfferedService(name, "ollama", "pi", "http://x", False, 0, first, list(models))


def brokers(*names: str) -> list[BrokerSession]:
    return [BrokerSession(name, is_welcome=True) for name in names]


def told(offer: ServiceOffer, now: float, *, is_open: bool = True) -> list[Message]:
    effects = offer.tell(brokers("a"), now, is_open=is_open)
    return [each.message for each in effects]  # type: ignore[union-attr]


def offering(*services: OfferedService) -> ServiceOffer:
    offer = ServiceOffer()
    offer.offer(["agent_action"], services, 0.0)
    assert told(offer, 1.0)
    return offer


M, N = OfferedModel("m"), OfferedModel("n")


def test_who_never_had_a_service_says_nothing_of_services() -> None:
    offer = ServiceOffer()
    offer.offer(["agent_action"], [], 1.0)
    offer.measured("s", [M], 1.0)
    assert (offer.is_any, offer.due) == (False, NEVER)
    assert told(offer, 5.0) == told(offer, 5.0, is_open=False) == []


def test_all_of_it_is_told_to_all_who_are_there_and_once() -> None:
    offer = ServiceOffer()
    offer.offer(["agent_action"], [], 1.0)
    offer.offer(["agent_action"], [service("s", M)], 1.0)
    assert offer.due == 1.0 + TOLD_TOGETHER_S
    up, down = brokers("a", "b"), BrokerSession("c")
    assert offer.tell([*up, down], 1.0, is_open=True) == []
    effects = offer.tell([*up, down], offer.due, is_open=True)
    wanted = Services(["agent_action"], [service("s", M)], [], [], [])
    assert [(each.link, each.message) for each in effects] == [("a", wanted), ("b", wanted)]  # type: ignore[union-attr]
    assert told(offer, 2.0) == []


def test_that_the_last_service_is_gone_is_told() -> None:
    offer = offering(service("s", M))
    offer.offer(["agent_action"], [], 2.0)
    assert told(offer, 3.0) == [Services(["agent_action"], [], [], [], [])]


def test_changes_of_one_moment_are_one_message_for_each_service() -> None:
    offer = offering(service("s", M, N), service("t", M))
    for number, at in enumerate((2.0, 2.01, 2.02)):
        offer.measured("s", [OfferedModel("m", requests=number)], at)
    offer.measured("s", [OfferedModel("new")], 2.03)
    offer.measured("t", [OfferedModel("m", slots=2)], 2.03)
    assert told(offer, 2.04) == []
    assert told(offer, 2.0 + TOLD_TOGETHER_S) == [
        Measured("s", [OfferedModel("m", requests=2), OfferedModel("new")]),
        Measured("t", [OfferedModel("m", slots=2)]),
    ]
    assert offer.due > 3.0
    (whole,) = [offer.told_to(broker, 3.0).message for broker in brokers("a")]
    assert isinstance(whole, Services)
    assert [model.name for model in whole.services[0].models] == ["m", "n", "new"]
    assert whole.services[0].models[0].requests == 2


def test_a_model_that_is_paused_is_told_at_once_and_once() -> None:
    offer = offering(service("s", M, N))
    offer.measured("s", [OfferedModel("m", paused="HTTP 500")], 2.0)
    assert told(offer, 2.0) == [Measured("s", [OfferedModel("m", paused="HTTP 500")])]
    offer.measured("s", [OfferedModel("m", paused="HTTP 503")], 2.0)
    assert told(offer, 2.0) == []
    assert len(told(offer, 2.1)) == 1
    offer.offer(["agent_action"], [service("s", OfferedModel("m", paused="x"), N)], 3.0)
    assert told(offer, 3.0) == []
    offer.offer(["agent_action"], [service("s", M, OfferedModel("n", paused="x"))], 3.0)
    assert [type(each) for each in told(offer, 3.0)] == [Services]


def test_all_of_it_is_told_again_after_a_while_lest_a_message_was_lost() -> None:
    offer = offering(service("s", M))
    again = offer.due
    assert again == 1.0 + TOLD_AGAIN_S
    offer.measured("s", [N], again - 1.0)
    assert [type(each) for each in told(offer, again - 0.5)] == [Measured]
    assert offer.due == again
    (whole,) = told(offer, again)
    assert whole == Services(["agent_action"], [service("s", M, N)], [], [], [])
    assert offer.due == again + TOLD_AGAIN_S


def test_other_types_are_told_at_once() -> None:
    offer = offering(service("s", M))
    offer.offer(["agent_action", "embed"], [service("s", M)], 2.0)
    assert told(offer, 2.0) == [Services(["agent_action", "embed"], [service("s", M)], [], [], [])]


def test_a_change_that_all_of_it_has_anyway_is_not_told_twice() -> None:
    offer = offering(service("s", M))
    offer.measured("s", [N], 2.0)
    offer.offer(["agent_action"], [service("s", M, N)], 2.0)
    assert [type(each) for each in told(offer, 3.0)] == [Services]
    assert told(offer, 4.0) == []


def test_models_of_a_service_that_is_not_offered_or_beyond_the_bound_are_nothing() -> None:
    offer = offering(service("s", *(OfferedModel(f"m{n}") for n in range(MAX_NAMES))))
    offer.measured("t", [M], 2.0)
    offer.measured("s", [M], 2.0)
    assert told(offer, 3.0) == []
    offer.measured("s", [OfferedModel("m1", slots=2)], 3.0)
    assert told(offer, 4.0) == [Measured("s", [OfferedModel("m1", slots=2)])]


def test_while_no_tasks_are_taken_no_service_is_offered() -> None:
    offer = offering(service("s", M))
    assert told(offer, 2.0, is_open=False) == [Services([], [], [], [], [])]
    offer.measured("s", [OfferedModel("m", paused="x")], 3.0)
    assert told(offer, 3.0, is_open=False) == []
    (whole,) = told(offer, 4.0)
    assert isinstance(whole, Services)
    assert whole.services[0].models[0].paused == "x"


def test_what_runs_at_a_service_is_named_with_it() -> None:
    broker = BrokerSession("a", is_welcome=True)
    broker.placed = {"t1": Placement("s", "m"), "t2": Placement("gone", "n")}
    for is_open in (True, False):
        offer = offering(service("s", M))
        offer.tell([], 2.0, is_open=is_open)
        said = offer.told_to(broker, 2.0).message
        assert isinstance(said, Services)
        held = (said.held_ids, said.held_services, said.held_models)
        assert held == (["t1", "t2"], ["s", "gone"], ["m", "n"])


def test_what_a_budget_says_is_as_of_when_it_is_told() -> None:
    budget = Budget(
        recent=[(1.0, 10)], day_requests=5, day_tokens=50, day_left_s=100.0, blocked_s=30.0
    )
    offer = offering(service("s", OfferedModel("m", budget=budget)))

    def at(now: float) -> Budget:
        said = offer.told_to(brokers("a")[0], now).message
        assert isinstance(said, Services)
        found = said.services[0].models[0].budget
        assert found is not None
        return found

    assert at(0.0) == budget
    later = at(40.0)
    assert (later.recent, later.blocked_s, later.day_left_s) == ([(41.0, 10)], 0.0, 60.0)
    assert (later.day_requests, later.day_tokens) == (5, 50)
    tomorrow = at(100.0)
    assert (tomorrow.day_requests, tomorrow.day_tokens, tomorrow.day_left_s) == (0, 0, 0.0)


# --- at length --------------------------------------------------------------------------


def test_what_is_said_at_length_is_told_once_and_to_who_comes_later() -> None:
    offer = offering(service("s", OfferedModel("m", "sha"), OfferedModel("n", "sha")))
    offer.described("s", "m", b"{}", 2.0)
    offer.described("s", "n", b"{}", 2.0)  # the same content by another name
    offer.described("s", "x", b"{}", 2.0)  # not offered
    said = Described("s", "m", b"{}")
    assert told(offer, offer.due) == [said]
    assert told(offer, 3.0) == []
    (late,) = brokers("b")
    assert [each.message for each in offer.all_told(late, 4.0)][1:] == [said]  # type: ignore[union-attr]


def test_what_is_not_offered_any_more_is_not_described() -> None:
    offer = offering(service("s", M))
    offer.described("s", "m", b"{}", 2.0)
    offer.offer(["agent_action"], [service("s", N)], 3.0)
    assert len(offer.all_told(brokers("b")[0], 4.0)) == 1


def test_what_is_too_long_is_not_told() -> None:
    offer = offering(service("s", M))
    offer.described("s", "m", bytes(MAX_DESCRIPTION_BYTES + 1), 2.0)
    assert len(offer.all_told(brokers("b")[0], 4.0)) == 1


def test_how_long_a_model_stays_gets_shorter_until_it_is_said() -> None:
    offer = offering(service("s", OfferedModel("m", expires_s=60.0), OfferedModel("n")))
    (said,) = told(offer, 1.0 + TOLD_AGAIN_S)
    assert isinstance(said, Services)
    left = [model.expires_s for model in said.services[0].models]
    assert left == [60.0 - 1.0 - TOLD_AGAIN_S, 0.0]
    (later,) = told(offer, 1.0 + 3 * TOLD_AGAIN_S)
    assert isinstance(later, Services)
    assert 0 < later.services[0].models[0].expires_s < 1
