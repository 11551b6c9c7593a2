"""Why a task is where it is: told in sentences, and never guessed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import structs

from d8mesh.core.broker.explain import RanAt
from d8mesh.core.broker.standings import Decision, Obstacle, Standing
from d8mesh.core.protocol import messages as m
from tests.core.llm_services import host, model, offer, placed, service
from tests.core.wired_broker import START_AT, S, WiredBroker


def explained(broker: WiredBroker, task_id: str) -> dict[str, Any]:
    answer = broker.ask(broker.client("f" * 16), "explain", id=task_id)
    assert answer.code == "", answer.body
    return answer.body


def status(broker: WiredBroker, task_id: str) -> dict[str, Any]:
    return broker.ask(broker.client("e" * 16), "status", id=task_id).body


def test_a_type_that_nobody_offers_is_told_with_who_would_run_it(broker: WiredBroker) -> None:
    broker.worker("w", types=("resize",))
    (task_id,) = broker.submit(broker.client(), kind="resise")
    told = explained(broker, task_id)
    assert "no worker in the mesh offers 'resise'; did you mean 'resize'?" in told["summary"]
    assert told["candidates"] == []
    assert told["remedies"] == [
        {"text": "start a worker that offers 'resise'", "command": "worker --tasks MODULE"}
    ]


def test_busy_workers_are_told_with_their_slots_and_who_goes_before(broker: WiredBroker) -> None:
    client = broker.client()
    broker.worker("w", slots=2)
    broker.submit(client, 5)
    (last,) = broker.submit(client)
    broker.pass_time(4)
    told = explained(broker, last)
    assert told["summary"] == "the one worker that offers it is busy; 3 waiting before it"
    assert told["why"] == ["it has waited 4.0 s so far"]
    (worker,) = told["candidates"]
    assert (worker["worker"], worker["state"]) == ("w", "full")
    assert worker["text"] == "busy with 2 of 2 slots"
    assert told["remedies"] == [{"text": "start one more worker", "command": "worker"}]


def test_a_worker_that_is_away_is_told_with_when_it_was_heard(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    broker.say(worker, m.Goodbye("x"))
    (task_id,) = broker.submit(client)
    broker.pass_time(30)
    told = explained(broker, task_id)
    assert [each["text"] for each in told["candidates"]] == ["away, last heard of 30 s ago"]
    assert told["remedies"][0] == {"text": "start a worker on host", "command": "worker"}


def test_a_task_for_a_later_time_is_told_with_its_time(broker: WiredBroker) -> None:
    broker.worker("w")
    (task_id,) = broker.submit(broker.client(), run_at=broker.at + 300)
    told = explained(broker, task_id)
    assert told["state"] == "delayed"
    assert told["why"][0] == "it was submitted for a later time, in 5 min"
    assert told["remedies"] == []


def test_the_pause_after_a_failure_is_told_with_the_error(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.draw = lambda: 0.9
    broker.finish(worker, broker.work(worker), m.FAILED)
    told = explained(broker, task_id)
    assert told["state"] == "delayed"
    assert told["why"][0].startswith("it pauses after what went wrong, and is tried again in 0.")
    assert "attempts that failed so far: 1" in told["why"]
    assert "last error: broken" in told["summary"]
    assert told["candidates"][0]["state"] == "free", "nobody else is left"
    broker.worker("v")
    assert explained(broker, task_id)["candidates"][0]["state"] == "failed_before"


def test_a_running_task_is_told_with_its_worker(broker: WiredBroker) -> None:
    broker.worker("w")
    (task_id,) = broker.submit(broker.client(), deadline_s=60.0)
    broker.pass_time(3)
    told = explained(broker, task_id)
    assert told["state"] == "running"
    assert told["why"] == [
        "worker 'w' has it since 3.0 s, as attempt 1: it runs there, or is about to"
    ]


def test_a_worker_whose_return_is_awaited_is_told(broker: WiredBroker) -> None:
    broker.worker("w")
    (task_id,) = broker.submit(broker.client())
    broker.pass_time(1)
    broker.restart()
    told = explained(broker, task_id)
    assert told["why"] == ["it ran on worker 'w', which is away; its return is waited for"]


def test_a_deadline_is_told_while_the_task_waits(broker: WiredBroker) -> None:
    (task_id,) = broker.submit(broker.client(), deadline_s=60.0)
    assert "it fails if it is not finished in 60 s" in explained(broker, task_id)["why"]


def test_a_finished_task_says_who_had_it_and_what_is_not_known(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.pass_time(2)
    broker.finish(worker, broker.work(worker))
    told = explained(broker, task_id)
    assert (told["state"], told["summary"]) == ("completed", "it completed")
    assert told["waited_s"] is None
    assert told["why"] == [
        "the last to have it was worker 'w'",
        "from its submit to its end it took 2.0 s; how much of that it waited is not known",
        "it was never given back and never failed",
    ]


def test_a_result_tells_where_it_ran_and_how_long(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", types=("agent_action",))
    (task_id,) = broker.submit(client, kind="agent_action")
    broker.pass_time(8)
    held = broker.work(worker)
    body = {
        "success": True,
        "output": "x",
        "model": "small",
        "model_requested": "big",
        "machine": "nas",
        "is_cloud": True,
        "duration_s": 3.0,
    }
    payload = msgspec.msgpack.encode(body)
    broker.say(worker, m.Results(77, 4, [task_id], [held[task_id]], b"\1", [payload]))
    told = explained(broker, task_id)
    assert told["waited_s"] == pytest.approx(5.0)
    assert told["why"] == [
        "it ran on nas with the model 'small', worker 'w'",
        "who else could have run it is not known any more",
        "that is in the cloud: its data left the LAN",
        "it asked for the model 'big', and another answered",
        "it waited 5.0 s and took 3.0 s",
        "it was never given back and never failed",
    ]


def test_a_task_that_failed_says_why_and_how_often(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, max_attempts=2)
    broker.finish(worker, broker.work(worker), m.FAILED)
    broker.pass_time(5)
    broker.finish(worker, broker.work(worker), m.FAILED)
    told = explained(broker, task_id)
    assert told["summary"] == "it failed: broken"
    assert "attempts that failed: 2, the last time: broken" in told["why"]


def test_what_was_never_begun_says_so(broker: WiredBroker) -> None:
    client = broker.client()
    (task_id,) = broker.submit(client)
    broker.pass_time(4)
    broker.ask(client, "cancel", id=task_id)
    told = explained(broker, task_id)
    assert told["summary"] == "it was cancelled"
    assert told["why"] == ["it was never begun; that was so for 4.0 s"]


def test_what_came_in_at_a_door_says_so_and_that_its_caller_may_have_left(
    broker: WiredBroker,
) -> None:
    client, source = broker.client(), "openai 10.0.0.9 curl/8.5"
    (task_id,) = broker.submit(client, source=source)
    came = "it came in at the door openai, from 10.0.0.9 curl/8.5"
    assert explained(broker, task_id)["why"][0] == came
    broker.ask(client, "cancel", id=task_id)
    told = explained(broker, task_id)
    assert told["summary"].startswith("it was cancelled: its caller left before the end")
    assert told["why"][0] == came
    (of_batch,) = broker.submit(client, source="batch")
    assert explained(broker, of_batch)["why"][0] == "it came in at the door batch"


def test_an_unknown_task_is_refused(broker: WiredBroker) -> None:
    client = broker.client()
    assert broker.ask(client, "explain", id=f"{S}-77").code == "task.unknown"
    assert broker.ask(client, "explain", id="no id").code == "task.unknown"


def test_a_result_that_cannot_be_read_tells_nothing(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    broker.say(worker, m.Results(78, 4, [task_id], [held[task_id]], b"\1", [b"\xc1"]))
    assert explained(broker, task_id)["state"] == "completed"
    assert RanAt().model is None


# --------------------------------------------------------------- what services answer


def test_a_full_service_is_told_with_its_slots(broker: WiredBroker) -> None:
    host(broker, "w", [service("a", [model("m", slots=2)]), service("b", [model("n")])])
    client = broker.client()
    broker.submit(client, 3, kind="agent_action", model="=m")
    (task_id,) = broker.submit(client, kind="agent_action", model="=m")
    told = explained(broker, task_id)
    assert told["summary"] == "the one service with the model 'm' is busy; 1 waiting before it"
    assert "it asks for the model 'm' and takes no other" in told["why"]
    full, other = told["candidates"]
    assert (full["machine"], full["state"]) == ("machine-a", "full")
    assert full["text"].startswith("busy with 2 of 2 slots")
    assert (other["machine"], other["text"]) == ("machine-b", "the model is not installed there")
    assert told["remedies"] == [
        {"text": "install m on machine-b", "command": "models pull m --on machine-b"}
    ]
    assert status(broker, task_id)["reason"] == told["summary"], "one source"


def test_a_model_that_lacks_what_is_needed_is_told(broker: WiredBroker) -> None:
    host(broker, "w", [service("a", [model("m", can=["completion"])])])
    (task_id,) = broker.submit(broker.client(), kind="agent_action", model="=m;needs=tools")
    told = explained(broker, task_id)
    assert "the model must be capable of tools" in told["why"]
    assert [each["text"] for each in told["candidates"]] == ["the model there lacks tools"]


def test_the_cloud_that_is_not_allowed_is_told_with_how_to_allow_it(broker: WiredBroker) -> None:
    cloud = service("g", [model("big")], kind="groq", is_cloud=True, machine="groq")
    host(broker, "w", [cloud])
    (task_id,) = broker.submit(broker.client(), kind="agent_action", model="=big;cloud=never")
    told = explained(broker, task_id)
    assert "its data may not leave the LAN" in told["why"]
    assert [each["state"] for each in told["candidates"]] == ["cloud_forbidden"]
    assert told["remedies"][0]["text"].startswith('allow the cloud (groq): submit it with "cloud"')


def test_a_paused_model_is_told_with_its_reason(broker: WiredBroker) -> None:
    host(broker, "w", [service("a", [model("m", paused="it crashed")])])
    (task_id,) = broker.submit(broker.client(), kind="agent_action", model="=m")
    told = explained(broker, task_id)
    assert [each["state"] for each in told["candidates"]] == ["paused"]
    assert told["summary"].startswith("machine-a with the model 'm': paused: it crashed; ")


def test_where_a_placed_task_ran_is_told_with_who_else_could_have(broker: WiredBroker) -> None:
    slow = model("m", output_tokens_per_s=10.0)
    worker = host(broker, "w", [service("a", [model("m")]), service("b", [slow])])
    (task_id,) = broker.submit(broker.client(), kind="agent_action", model="=m#c.100.50")
    assert placed(broker, worker) == {task_id: ("a", "m")}
    running = explained(broker, task_id)
    assert running["why"][1].startswith("it went to machine-a with the model 'm', which would be")
    broker.pass_time(3)
    broker.finish(worker, broker.work(worker))
    told = explained(broker, task_id)
    assert told["waited_s"] == pytest.approx(0.0)
    assert told["why"][0].startswith(
        "it went to machine-a with the model 'm', which would be done with it first, in about 0."
    )
    (attempt,) = told["attempts"]
    assert (attempt["attempt"], attempt["service"]) == (1, "a")
    assert {each["machine"] for each in attempt["candidates"]} == {"machine-a", "machine-b"}


def test_the_only_one_that_could_begin_is_told_as_that(broker: WiredBroker) -> None:
    host(broker, "w", [service("a", [model("m")])])
    (task_id,) = broker.submit(broker.client(), kind="agent_action")
    told = explained(broker, task_id)
    assert told["why"][1] == (
        "it went to machine-a with the model 'm', the only one that could begin with it then"
    )


def test_nobody_is_there_for_a_model(broker: WiredBroker) -> None:
    worker = host(broker, "w", [service("a", [model("m")])])
    broker.say(worker, m.Goodbye("x"))
    (task_id,) = broker.submit(broker.client(), kind="agent_action")
    told = explained(broker, task_id)
    assert told["summary"].startswith("no worker in the mesh offers 'agent_action'")
    assert told["remedies"][0]["command"] == "worker"


def test_a_service_that_is_down_is_to_be_started(broker: WiredBroker) -> None:
    down = service("a", [], why="Ollama does not answer at http://pi5:11434")
    offer(broker, broker.worker("w"), [down], kinds=())
    (task_id,) = broker.submit(broker.client(), kind="agent_action", model="m")
    told = explained(broker, task_id)
    (candidate,) = told["candidates"]
    assert candidate["text"] == (
        "it offers nothing now: Ollama does not answer at http://pi5:11434"
    )
    assert told["remedies"][0] == {"text": "start the service on machine-a", "command": None}


def test_a_pull_waits_for_who_reaches_the_machine(broker: WiredBroker) -> None:
    client, kinds = broker.client(), ("model_pull",)
    here = broker.worker("w", types=kinds)
    offer(broker, here, [service("a")], kinds=())
    (task_id,) = broker.submit(client, kind="model_pull", model="m;on=machine-b")
    told = explained(broker, task_id)
    assert told["summary"].startswith("no worker that offers 'model_pull' reaches 'machine-b'")
    assert "it may run on 'machine-b' only" in told["why"]
    assert [each["text"] for each in told["candidates"]] == [
        "not the machine that the task asks for"
    ]
    there = broker.worker("v", types=kinds)
    offer(broker, there, [service("b", [model("other")])], kinds=())
    assert list(broker.work(there)) == [task_id]
    assert broker.work(here) == {}


# ------------------------------------------------------------------- the rarer answers


def test_a_broker_that_ends_hands_out_nothing(broker: WiredBroker) -> None:
    (task_id,) = broker.submit(broker.client())
    broker.state.is_draining = True
    told = explained(broker, task_id)
    assert "the orchestrator is shutting down and hands out nothing" in told["why"]


def test_polling_workers_are_told_as_they_are(broker: WiredBroker) -> None:
    client = broker.client()
    types = {"task_types": ["evolution_crossover", "slow"]}
    args = {"worker_id": "p", "worker_type": "t", "capabilities": types, "status": "online"}
    broker.ask(client, "poll.register", **args)
    broker.worker("w", types=("evolution_crossover",), window=0)
    (task_id,) = broker.submit(client, kind="evolution_crossover")
    polling, mesh = explained(broker, task_id)["candidates"]
    assert polling["text"] == "mesh workers go before it with tasks of this type"
    assert mesh["text"] == "it takes nothing now, it does not say why"
    (task_id,) = broker.submit(client, kind="slow")
    (polling,) = explained(broker, task_id)["candidates"]
    assert polling["text"] == "it fetches its tasks itself, and does not ask for one now"


def test_a_worker_that_says_what_is_wrong_is_told_with_it(broker: WiredBroker) -> None:
    broker.worker("w", window=0)
    (worker,) = broker.state.registry.workers.values()
    worker.trouble = "its disk is full"
    (task_id,) = broker.submit(broker.client())
    (candidate,) = explained(broker, task_id)["candidates"]
    assert candidate["text"] == "it takes nothing now: its disk is full"


def test_a_worker_without_the_model_is_told_while_another_has_it(broker: WiredBroker) -> None:
    broker.worker("w", types=("agent_action",), models=["m"], window=0)
    broker.worker("v", types=("agent_action",), models=["n"])
    (task_id,) = broker.submit(broker.client(), kind="agent_action", model="m")
    told = {each["worker"]: each["text"] for each in explained(broker, task_id)["candidates"]}
    assert told["v"] == "it does not have the model that the task asks for"


def test_several_models_and_no_model_are_told(broker: WiredBroker) -> None:
    host(broker, "w", [service("a", [model("m", slots=1), model("n", slots=1)])])
    client = broker.client()
    broker.submit(client, 4, kind="agent_action", model="=m|n;cloud=overflow")
    (several,) = broker.submit(client, kind="agent_action", model="=m|n;cloud=overflow")
    why = explained(broker, several)["why"]
    assert "it asks for the first of these models that can begin: m, n" in why
    assert "it may go to the cloud if no machine of the LAN can begin soon" in why
    broker.submit(client, 3, kind="agent_action")
    (none,) = broker.submit(client, kind="agent_action")
    why = explained(broker, none)["why"]
    assert "it asks for no model: each service answers with its own" in why
    (preferred,) = broker.submit(client, kind="agent_action", model="m")
    assert (
        "it asks for the model 'm', another answers if nobody has that"
        in explained(broker, preferred)["why"]
    )


def test_what_came_back_is_counted(broker: WiredBroker) -> None:
    worker = host(broker, "w", [service("a", [model("m")])])
    (task_id,) = broker.submit(broker.client(), kind="agent_action")
    held = broker.work(worker)
    broker.say(worker, m.Release(4, [task_id], [held[task_id]], "busy"))
    told = explained(broker, task_id)
    assert "given back so far: 1" in told["why"]
    assert "given back: " in told["summary"]
    broker.pass_time(5)
    broker.finish(worker, broker.work(worker))
    why = explained(broker, task_id)["why"]
    assert any(each.startswith("given back: 1, the last time: ") for each in why)
    assert any(each.startswith("its last attempt (number 2) began after ") for each in why)


def test_a_task_that_goes_on_after_a_restart_has_no_known_beginning(broker: WiredBroker) -> None:
    broker.worker("w")
    (task_id,) = broker.submit(broker.client())
    held = broker.work(next(iter(broker.state.registry.workers.values())).peer)
    broker.pass_time(1)
    broker.restart()
    broker.worker("w", held=held)
    told = explained(broker, task_id)
    assert told["why"][0].startswith("worker 'w' has it")


def decision(*candidates: Standing) -> Decision:
    return Decision(
        task_id=f"{S}-0", attempt=1, service="a", model="m", at=START_AT, waited_s=0.0,
        candidates=candidates,
    )  # fmt: skip


def stood(name: str, estimate_s: float | None, obstacle: Obstacle | None = None) -> Standing:
    return Standing(
        service=name, machine=f"machine-{name}", kind="ollama", is_cloud=False, model="m",
        obstacle=obstacle, estimate_s=estimate_s,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("candidates", "text"),
    [
        ((), "it went to the model 'm'; who else could have had it is not known"),
        (
            (stood("a", None), stood("b", 1.0)),
            "it went to machine-a with the model 'm'; how long it would take was not known",
        ),
        (
            (stood("a", 2.0), stood("b", None), stood("c", 9.0, Obstacle.HELD_BACK)),
            (
                "it went to machine-a with the model 'm', which would be done with it first, "
                "in about 2.0 s"
            ),
        ),
        (
            (stood("a", 2.1), stood("b", 2.1)),
            (
                "it went to machine-a with the model 'm', done in about 2.1 s; "
                "others would have been about as quick"
            ),
        ),
        (
            (stood("a", 2.1), stood("b", 2.0)),
            (
                "it went to machine-a with the model 'm', done in about 2.1 s; "
                "others would have been about as quick"
            ),
        ),
    ],
)
def test_why_it_went_there_is_what_was_decided(
    broker: WiredBroker, candidates: tuple[Standing, ...], text: str
) -> None:
    worker = broker.worker("w")
    (task_id,) = broker.submit(broker.client())
    broker.state.services.note_decision(structs.replace(decision(*candidates), task_id=task_id))
    assert explained(broker, task_id)["why"][1] == text
    broker.finish(worker, broker.work(worker))
    assert explained(broker, task_id)["why"][0] == text


def test_a_task_that_was_cancelled_while_it_waited_again_has_no_last_worker(
    broker: WiredBroker,
) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    broker.say(worker, m.Release(0, [task_id], [held[task_id]], "full"))
    broker.ask(client, "cancel", id=task_id)
    told = explained(broker, task_id)
    assert told["summary"] == "it was cancelled"
    assert any(each.startswith("given back: 1, the last time: ") for each in told["why"])


def test_an_attempt_that_was_given_back_took_no_longer_than_until_then(
    broker: WiredBroker,
) -> None:
    worker = host(broker, "w", [service("a", [model("m")])])
    client = broker.client()
    (task_id,) = broker.submit(client, kind="agent_action")
    held = broker.work(worker)
    broker.pass_time(2)
    offer(broker, worker, [service("a", [], why="it is off")])
    broker.say(worker, m.Release(4, [task_id], [held[task_id]], "busy"))
    broker.pass_time(16)
    broker.ask(client, "cancel", id=task_id)
    why = explained(broker, task_id)["why"]
    assert "it did not wait, and took 2.0 s" in why
    assert "then it waited 16 s to be tried again" in why


def test_what_began_at_once_did_not_wait(broker: WiredBroker) -> None:
    worker = host(broker, "w", [service("a", [model("m")])])
    (task_id,) = broker.submit(broker.client(), kind="agent_action")
    broker.pass_time(3)
    broker.finish(worker, broker.work(worker))
    assert "it did not wait, and took 3.0 s" in explained(broker, task_id)["why"]


def test_a_model_that_nobody_has_is_told_with_the_nearest(broker: WiredBroker) -> None:
    host(broker, "w", [service("a", [model("llama3:8b")])])
    (task_id,) = broker.submit(broker.client(), kind="agent_action", model="=llama3")
    running = explained(broker, task_id)
    assert "no service has 'llama3'; did you mean 'llama3:8b'?" in running["why"]


def test_a_machine_that_nobody_reaches_is_told_with_those_that_are_there(
    broker: WiredBroker,
) -> None:
    host(broker, "w", [service("a", machine="attic"), service("b", machine="pi5")])
    (task_id,) = broker.submit(broker.client(), kind="agent_action", model="m;on=pi")
    told = explained(broker, task_id)
    assert told["summary"].startswith("no worker reaches a service on 'pi'; did you mean 'pi5'?")
    assert told["remedies"] == [
        {
            "text": "let it run where a service is, or leave out machine: pi5, attic",
            "command": None,
        },
        {"text": "start a worker on pi", "command": "worker"},
    ]


def test_explain_tells_the_place_in_line_as_a_number(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = broker.client()
    ids = [task_id for _ in range(3) for task_id in broker.submit(client)]
    told = [broker.ask(client, "explain", id=each).body for each in ids]
    assert [(each["ahead"], each["ahead_is_more"]) for each in told] == [
        (0, False),
        (1, False),
        (2, False),
    ]
    monkeypatch.setattr("d8mesh.core.broker.queue.AHEAD_BATCHES", 2)
    told[2] = broker.ask(client, "explain", id=ids[2]).body
    assert (told[2]["ahead"], told[2]["ahead_is_more"]) == (2, True)
    broker.worker("w")
    assert broker.ask(client, "explain", id=ids[0]).body["ahead"] is None
