"""How services and waiting tasks stand, as it is told."""

from __future__ import annotations

from d8mesh.core.broker import service_views
from d8mesh.core.broker.standings import BudgetLeft, Obstacle
from d8mesh.core.protocol.messages import Budget
from d8mesh.core.protocol.task import Spec
from tests.core.llm_services import host, model, offer, service
from tests.core.wired_broker import WiredBroker


def standing(broker: WiredBroker, wish: str, priority: int = 5) -> dict[str, Obstacle | None]:
    spec = Spec("agent_action", priority, 3, wish)
    told = service_views.standings(broker.state, spec)
    return {f"{each.service}/{each.model}": each.obstacle for each in told}


def test_each_service_says_how_it_stands_to_a_wish(broker: WiredBroker) -> None:
    client = broker.client()
    models = [model("m"), model("n", is_loaded=False), model("e", can=["embedding"])]
    host(broker, "a", [service("a", models), service("down", [], why="connection refused")])
    host(broker, "b", [service("b", [model("n")]), service("empty", [])])
    assert (standing(broker, "")["empty/"], standing(broker, "m")["empty/"]) == (
        Obstacle.DOWN,
        Obstacle.NOT_INSTALLED,
    )
    assert standing(broker, "=m|n") == {
        "a/m": None,
        "a/n": Obstacle.SECOND_CHOICE,
        "b/n": Obstacle.SECOND_CHOICE,
        "down/": Obstacle.DOWN,
        "empty/": Obstacle.NOT_INSTALLED,
    }
    assert standing(broker, "m;on=a")["b/"] is Obstacle.ELSEWHERE
    assert standing(broker, "m;on=b")["down/"] is Obstacle.ELSEWHERE
    assert standing(broker, "m")["b/"] is Obstacle.NOT_INSTALLED
    assert standing(broker, "m;needs=vision")["a/m"] is Obstacle.LACKS
    assert standing(broker, ";needs=vision")["b/n"] is Obstacle.LACKS
    broker.submit(client, 1, "agent_action", model="m")
    assert standing(broker, "m")["a/m"] is Obstacle.FULL


def test_a_service_whose_workers_have_gone_is_away_while_something_runs_there(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    peer = host(broker, "a", [service("a")])
    broker.submit(client, 1, "agent_action")
    offer(broker, peer, [])
    assert standing(broker, "") == {"a/": Obstacle.AWAY}


def test_a_task_of_before_this_start_waits_for_its_model_and_a_new_one_does_not(
    broker: WiredBroker,
) -> None:
    spec, state = Spec("agent_action", 5, 3, "x"), broker.state
    broker.pass_time(0.4)
    assert state.registry.is_young
    assert service_views.ask_of(state, spec, state.started_at - 1.0).is_expected
    assert not service_views.ask_of(state, spec, state.at).is_expected
    must = Spec("agent_action", 5, 3, "=x")
    assert service_views.ask_of(state, must, state.at).is_expected
    assert not service_views.ask_of(state, Spec("agent_action", 5, 3), 0.0).is_expected
    broker.pass_time(11)
    assert not service_views.ask_of(state, must, 0.0).is_expected


def test_services_are_told_with_their_models_pauses_and_budgets(broker: WiredBroker) -> None:
    account = model("sky", budget=Budget(minute_requests=7), output_tokens_per_s=50.0)
    peer = host(broker, "a", [service("a", [model("m"), model("n")], slots=2)])
    offer(broker, peer, [service("a", [model("m"), model("n", paused="no memory"), account])])
    broker.state.services.services["a"].models["m"].own_pause_until = broker.now + 5.0
    (view,) = service_views.views(broker.state)
    assert (view.id, view.workers, view.in_flight) == ("a", ("a",), 0)
    told = {each.name: each for each in view.models}
    assert told["n"].paused == "no memory"
    assert told["n"].probed_in_s is None
    assert told["m"].probed_in_s == 5.0
    assert told["sky"].budget == BudgetLeft(minute_requests=7)
    assert told["sky"].output_tokens_per_s == 50.0
