"""Deliberate faults, each a small change of one function, and the check that must catch it.

`planted` changes a function of the running program for a while. The fault is text, so that
it reads as the slip it would be.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Plant:
    """In `where` (``module:Class.function``) `right` becomes `wrong`; `caught_by` must fail."""

    name: str
    where: str
    right: str
    wrong: str
    caught_by: str


POLLING: Final = "tests/core/broker/test_polling.py::test_"
RETURNS: Final = "tests/core/broker/test_returns.py::test_"
SERVICE_NAMES: Final = "tests/core/broker/test_service_names.py::test_"
WORKER_SESSIONS: Final = "tests/core/broker/test_worker_sessions.py::test_"
JOINING: Final = "tests/core/broker/test_joining.py::test_"
RESTART: Final = "tests/core/broker/test_restart.py::test_"
DISPATCHER: Final = "tests/core/broker/test_dispatcher.py::test_"
SCHEDULER: Final = "tests/core/broker/test_scheduler.py::test_"
WORKER: Final = "tests/core/worker/test_session.py::test_"
ADMISSION: Final = "tests/core/broker/test_admission.py::test_"
CLIENT: Final = "tests/core/client/test_session.py::test_"
DIRECT_CALL: Final = "tests/nodes/test_direct_call.py::test_"
LINK: Final = "tests/nodes/test_direct_call_link.py::test_"
SIMULATED: Final = "tests/simulation/test_simulation.py::test_no_history_breaks_a_promise[0]"
ERASURES: Final = "tests/core/broker/test_erasures.py::test_"
STORE: Final = "tests/core/broker/test_store.py::test_"
IN_FLIGHT: Final = "tests/nodes/test_commits_in_flight.py::test_"
POWER_CUT: Final = (
    "tests/power_cut/test_power_cut.py::"
    "test_whatever_the_disk_kept_every_acknowledged_commit_is_there[journal-20]"
)
PROMISES: Final = (
    "tests/core/broker/test_client_requests.py::test_answers_that_promise_wait_for_the_commit"
)

PLANTS: Final = (
    Plant(
        "acknowledge a submit before its commit",
        "d8mesh.core.broker.admission:Admission.submit",
        "self._state.send(client.peer, accepted, waits=True)",
        "self._state.send(client.peer, accepted, waits=False)",
        WORKER_SESSIONS + "results_are_acknowledged_after_the_commit_only",
    ),
    Plant(
        "acknowledge a result before its commit",
        "d8mesh.core.broker.worker_sessions:WorkerSessions._say_received",
        "Received(seq), waits=True",
        "Received(seq), waits=False",
        WORKER_SESSIONS + "results_are_acknowledged_after_the_commit_only",
    ),
    Plant(
        "let a worker drop its result before the commit of the other",
        "d8mesh.core.broker.worker_sessions:WorkerSessions.hello",
        "waits=True)",
        "waits=False)",
        WORKER_SESSIONS + "a_worker_is_told_to_drop_a_result_after_the_commit_of_the_other_only",
    ),
    Plant(
        "acknowledge a delivery before what was said is erased",
        "d8mesh.core.broker.erasures:Erasures.deliver",
        "state.send(client.peer, Received(message.seq), waits=True)",
        "state.send(client.peer, Received(message.seq), waits=False)",
        ERASURES + "what_was_delivered_is_erased_before_that_is_acknowledged",
    ),
    Plant(
        "acknowledge a delivery of which nothing is done",
        "d8mesh.core.broker.erasures:Erasures.deliver",
        "if later:",
        "if later and not message.keep_s:",
        SIMULATED,
    ),
    Plant(
        "forget over a restart what is to be erased",
        "d8mesh.edge.sqlite.restore:_counts",
        'restored.erasures[f"{session}-{n}"] = due_at',
        "pass",
        STORE + "what_is_to_be_erased_later_is_known_after_a_restart[journal]",
    ),
    Plant(
        "leave what was erased in the log",
        "d8mesh.edge.sqlite.journal:Journal._erased",
        "self._wiper.is_needed = True",
        "pass",
        "tests/edge/sqlite/test_texts.py::test_what_was_erased_is_nowhere_in_any_file[0]",
    ),
    Plant(
        "go on with a journal that knows what a failed commit has not written",
        "d8mesh.edge.sqlite.journal:Journal.append",
        "self._has_failed = True",
        "pass",
        STORE + "a_commit_that_fails_leaves_nothing_and_nothing_comes_after_it[journal]",
    ),
    Plant(
        "write the assignment of a task that has ended",
        "d8mesh.core.broker.deferral:Deferral.due",
        "old.pop(task_id, None)",
        "pass",
        "tests/core/broker/test_deferral.py::"
        "test_that_of_a_task_which_has_ended_by_then_is_never_written[1-Completed]",
    ),
    Plant(
        "promise what is not durable yet",
        "d8mesh.nodes.broker:Broker._perform",
        "self._store.confirmed() == self._begun",
        "True",
        IN_FLIGHT + "the_loop_goes_on_and_acknowledgements_wait",
    ),
    Plant(
        "acknowledge a result with an assignment while its commit is in flight",
        "d8mesh.core.broker.scheduler:Scheduler._flush",
        "if owed and self._state.unconfirmed_since < math.inf:",
        "if False:",
        IN_FLIGHT + "a_hand_out_acknowledges_no_result_that_is_not_durable",
    ),
    Plant(
        "acknowledge a result with an assignment whatever the store is at",
        "d8mesh.core.broker.scheduler:Scheduler._flush",
        "if owed and self._state.unconfirmed_since < math.inf:",
        "if False:",
        "tests/simulation/test_simulation.py::"
        "test_no_history_breaks_a_promise_while_commits_are_in_flight[2]",
    ),
    Plant(
        "hand out before a welcome whose commit is in flight",
        "d8mesh.core.broker.state:BrokerState.tell",
        "min(self.now, self.unconfirmed_since)",
        "self.now",
        IN_FLIGHT + "nothing_overtakes_the_welcome_of_a_worker",
    ),
    Plant(
        "answer a question from before a commit in flight",
        "d8mesh.nodes.broker:Broker._perform",
        "loads = [effect for effect in effects if type(effect) is Load]",
        "loads = [self._questions.ask(effect) for effect in effects if type(effect) is Load][:0]",
        IN_FLIGHT + "questions_are_answered_from_what_is_durable",
    ),
    Plant(
        "write an assignment only when another commit comes",
        "d8mesh.nodes.broker:Broker._step",
        "now >= self._deferral.until",
        "False",
        "tests/nodes/test_broker.py::test_who_has_what_is_noted_without_another_commit[True]",
    ),
    Plant(
        "hand out before the welcome that waits",
        "d8mesh.core.broker.state:BrokerState.tell",
        "waits=worker.welcomed >= not_durable_since",
        "waits=False",
        WORKER_SESSIONS + "a_worker_is_told_to_drop_a_result_after_the_commit_of_the_other_only",
    ),
    Plant(
        "acknowledge a result with an assignment that goes before its commit",
        "d8mesh.core.broker.worker_sessions:WorkerSessions.results",
        "worker.results.append(message.seq)",
        "worker.owed.append(message.seq)",
        WORKER_SESSIONS
        + "the_acknowledgement_of_a_single_result_goes_with_the_hand_out_after_the_next",
    ),
    Plant(
        "tell an outcome before its commit",
        "d8mesh.core.broker.outcomes:TaskOutcomes._send_part",
        "waits=True",
        "waits=False",
        WORKER_SESSIONS + "results_are_acknowledged_after_the_commit_only",
    ),
    Plant(
        "accept a stale failure",
        "d8mesh.core.broker.worker_sessions:WorkerSessions._unusual_result",
        "task.attempt.token == token and ",
        "",
        WORKER_SESSIONS + "a_stale_failure_is_refused",
    ),
    Plant(
        "accept a guessed token",
        "d8mesh.core.protocol.tokens:TokenSigner.check",
        "if self.token(heading, task_id) != token:",
        "if False:",
        WORKER_SESSIONS + "a_guessed_token_is_refused",
    ),
    Plant(
        "forget that a task is fenced",
        "d8mesh.core.broker.worker_sessions:WorkerSessions._unusual_result",
        " and not found[0].spec.is_fenced",
        "",
        WORKER_SESSIONS + "a_fenced_task_is_finished_by_its_current_attempt_only",
    ),
    Plant(
        "count a task twice that stands twice in a message",
        "d8mesh.core.broker.worker_sessions:WorkerSessions.results",
        "done.add(task_id)",
        "pass",
        WORKER_SESSIONS + "the_same_task_twice_in_one_message_counts_once",
    ),
    Plant(
        "read a heartbeat older than an assignment as a denial",
        "d8mesh.core.broker.worker_sessions:WorkerSessions.heartbeat",
        "(is_quiet or task.attempt.work_seq <= message.work_seq) and ",
        "",
        WORKER_SESSIONS + "a_hand_out_that_never_arrived_is_found_by_the_heartbeat",
    ),
    Plant(
        "never miss an assignment",
        "d8mesh.core.broker.returns:Returns.mislaid",
        "if lost:",
        "if False:",
        WORKER_SESSIONS + "a_hand_out_that_never_arrived_is_found_by_the_heartbeat",
    ),
    Plant(
        "leases on the wall clock",
        "d8mesh.core.broker.worker_sessions:WorkerSessions.sweep",
        "state.now - worker.last_heard >",
        "state.at - worker.last_heard_at >",
        "tests/core/broker/test_dispatcher.py::test_a_jump_of_the_wall_clock_changes_no_lease_and_no_deadline",
    ),
    Plant(
        "blame a lost worker for tasks it had not started",
        "d8mesh.core.broker.returns:running_and_waiting",
        "own[: worker.slots]",
        "own[:]",
        WORKER_SESSIONS + "only_the_running_attempts_of_a_lost_worker_are_blamed",
    ),
    Plant(
        "count the loss of a worker that comes back with the attempt",
        "d8mesh.core.broker.worker_sessions:WorkerSessions.hello",
        "self._unblame(worker, message)",
        "pass",
        WORKER_SESSIONS + "cuts_of_the_network_use_up_no_attempts",
    ),
    Plant(
        "take back losses of before the attempt that is held",
        "d8mesh.core.broker.worker_sessions:WorkerSessions._unblame",
        " and n >= claim.n",
        "",
        WORKER_SESSIONS + "a_loss_before_the_attempt_that_is_held_stays",
    ),
    Plant(
        "blame all workers for a cut of our own network",
        "d8mesh.core.broker.worker_sessions:WorkerSessions.sweep",
        "self._is_cut_off(worker)) and",
        "False) and",
        WORKER_SESSIONS + "nobody_is_blamed_when_the_whole_mesh_falls_silent",
    ),
    Plant(
        "never blame the last worker for its death",
        "d8mesh.core.broker.returns:Returns.blame",
        "if ids:",
        "if False:",
        WORKER_SESSIONS
        + "who_was_not_heard_with_all_the_others_and_had_died_is_blamed_when_it_is_back",
    ),
    Plant(
        "forget on disk that a loss was none",
        "d8mesh.edge.sqlite.journal:Journal._recounted",
        "int(fact.is_loss)",
        "1",
        WORKER_SESSIONS + "a_loss_is_taken_back_after_a_restart_of_the_broker_too",
    ),
    Plant(
        "let giving back cost an attempt",
        "d8mesh.core.broker.worker_sessions:WorkerSessions._given_back",
        "self._returns.take(worker.worker_id, given, why, kind)",
        "self._returns.requeue(worker.worker_id, given, why, is_counted=True)",
        WORKER_SESSIONS + "released_attempts_wait_again_and_cost_nothing",
    ),
    Plant(
        "let what cannot be run go round for ever",
        "d8mesh.core.broker.returns:Returns.take",
        "if before + 1 >= cost.most:",
        "if False:",
        RETURNS + "what_cannot_be_run_waits_longer_each_time_says_why_and_fails_in_the_end",
    ),
    Plant(
        "blame a service for what its account does not allow",
        "d8mesh.core.broker.returns:Returns._land_unrun",
        "if budget is not None and budget.free_in_s(0, self._state.now) > 0.0:",
        "if False:",
        RETURNS + "what_an_account_does_not_allow_costs_no_attempt_however_often",
    ),
    Plant(
        "count the slots of a service once for each id of it",
        "d8mesh.core.broker.service_names:ServiceNames._find",
        "for name in (offered.id, _place(offered, address)):",
        "for name in (offered.id,):",
        SERVICE_NAMES + "whoever_joins_first_both_share_one_set_of_slots",
    ),
    Plant(
        "forget at a restart what was given back",
        "d8mesh.edge.sqlite.restore:_hands",
        "history.give_back(name, told, returned)",
        "pass",
        RETURNS + "a_restart_forgets_neither_the_count_nor_the_pause",
    ),
    Plant(
        "end no attempt whose report cannot be taken",
        "d8mesh.core.broker.polling:Polling._refused",
        "if task is not None and is_polling",
        "if False",
        POLLING + "a_report_that_cannot_be_taken_ends_the_attempt_and_counts[p]",
    ),
    Plant(
        "never call prefetched tasks back",
        "d8mesh.core.broker.worker_sessions:WorkerSessions.sweep",
        "if excess > 0 and",
        "if False and",
        WORKER_SESSIONS + "prefetched_tasks_are_called_back_for_an_idle_worker",
    ),
    Plant(
        "forget what a worker came back with",
        "d8mesh.core.broker.worker_sessions:WorkerSessions._take_over",
        "worker.outstanding[task_id] = task",
        "pass",
        JOINING + "an_attempt_that_is_held_outlives_a_restart",
    ),
    Plant(
        "retry where it failed",
        "d8mesh.core.broker.placement:suits_retry",
        "if task.history is None or worker.worker_id not in task.history.failed_on:",
        "if True:",
        SCHEDULER + "a_failure_is_retried_after_a_pause_on_a_worker_that_has_not_failed_it",
    ),
    Plant(
        "let low priorities starve",
        "d8mesh.core.broker.queue:ReadyQueue.choose",
        "self._since_aged >= AGEING_PERIOD - 1",
        "self._since_aged >= 10**9",
        SCHEDULER + "high_priorities_go_first_and_every_16th_to_the_oldest_below",
    ),
    Plant(
        "hand out more than the window",
        "d8mesh.core.broker.scheduler:Scheduler._give",
        "min(worker.free, most)",
        "most",
        SCHEDULER + "a_window_is_never_exceeded",
    ),
    Plant(
        "forget deadlines",
        "d8mesh.core.broker.scheduler:Scheduler.enqueue",
        "if spec.deadline_at is not None:",
        "if False:",
        SCHEDULER + "a_deadline_fails_what_is_not_finished_and_stops_what_runs",
    ),
    Plant(
        "never use attempts up",
        "d8mesh.core.broker.returns:Returns._is_used_up",
        "errors + 1 >= task.batch.spec.max_attempts",
        "False",
        SCHEDULER + "attempts_are_counted_and_the_last_error_is_the_result",
    ),
    Plant(
        "lose an assignment that could not be sent",
        "d8mesh.core.broker.dispatcher:Dispatcher.undelivered",
        "if tasks:",
        "if False:",
        SCHEDULER + "a_hand_out_that_cannot_be_sent_goes_to_another",
    ),
    Plant(
        "take another body under the same key",
        "d8mesh.core.broker.admission:Admission._repeat",
        "if digest != message.digest:",
        "if False:",
        ADMISSION + "an_idempotency_key_gives_the_first_tasks_or_a_conflict",
    ),
    Plant(
        "take the same submit twice",
        "d8mesh.core.broker.records:Ranges.overlap",
        "return total",
        "return 0",
        ADMISSION + "the_same_submit_again_is_the_same_tasks",
    ),
    Plant(
        "forget the bound of the queue",
        "d8mesh.core.broker.admission:Admission.check_room",
        "if task_table.queued + count > policy.queue_size:",
        "if False:",
        ADMISSION + "a_full_queue_refuses_with_the_time_to_wait",
    ),
    Plant(
        "forget a cancellation on disk",
        "d8mesh.edge.sqlite.journal:Journal._cancelled",
        'self._insert("outcomes", self._runs(fact, state=CANCELLED_STATE, worker=None), width=7)',
        "pass",
        "tests/core/broker/test_client_requests.py::test_a_cancelled_task_is_told_and_stays_cancelled",
    ),
    Plant(
        "start with the epoch of before",
        "d8mesh.edge.sqlite.journal:Journal.restore",
        'meta["epoch"] + 1',
        'meta["epoch"] + 0',
        STORE + "the_epoch_rises_with_every_start_and_the_identity_stays[journal]",
    ),
    Plant(
        "let a result be overwritten in memory",
        "d8mesh.core.broker.task_table:TaskTable._take_fresh",
        "if place is None or self.state_of(task_id) is None:",
        "if place is None:",
        "tests/core/broker/test_task_table.py::test_a_finished_task_cannot_be_finished_again",
    ),
    Plant(
        "hand the next task to a polling worker whose reply was lost",
        "d8mesh.core.broker.polling:Polling._next",
        "if worker.outstanding and len(worker.outstanding) >= worker.slots:",
        "if False:",
        "tests/core/broker/test_polling.py::test_a_full_hand_that_asks_means_that_a_reply_was_lost",
    ),
    Plant(
        "send first and commit then",
        "d8mesh.nodes.broker:Broker._perform",
        "if not send.waits and not deliver(",
        "if not deliver(",
        "tests/nodes/test_broker.py::"
        "test_a_commit_that_fails_acknowledges_nothing_and_ends_the_broker",
    ),
    Plant(
        "go on after a commit that failed",
        "d8mesh.edge.sqlite.journal:Journal.append",
        'raise JournalError(f"cannot write {self.path.name}: {error}") from error',
        "pass",
        "tests/edge/test_sqlite.py::test_a_commit_that_fails_leaves_nothing_behind",
    ),
    Plant(
        "let a second process write to the journal",
        "d8mesh.edge.sqlite.place:Lock.__init__",
        "self._lock.acquire()",
        "pass",
        "tests/edge/test_sqlite.py::test_a_second_process_is_refused_and_told_who_holds_it",
    ),
    Plant(
        "count credit by what a worker asks for, not by what it was given",
        "d8mesh.core.broker.scheduler:Scheduler._hand",
        "outstanding[task.id] = task",
        "pass",
        SCHEDULER + "a_window_is_never_exceeded",
    ),
    Plant(
        "let a task take down one worker after another",
        "d8mesh.core.broker.returns:Returns._is_used_up",
        "return is_loss and",
        "return False and",
        WORKER_SESSIONS + "a_task_that_took_three_workers_down_is_poison",
    ),
    Plant(
        "let a worker go on with what is finished",
        "d8mesh.core.broker.worker_sessions:WorkerSessions._take_over",
        "dropped.append(task_id)",
        "pass",
        JOINING + "held_attempts_of_finished_tasks_are_dropped",
    ),
    Plant(
        "let an assignment outlive the submit that its commit lost",
        "d8mesh.core.broker.worker_sessions:WorkerSessions._take_over",
        "dropped.append(task_id)",
        "dropped += [task_id] if state.task_table.accepted.get(task_id[:16]) else []",
        JOINING + "a_hand_out_whose_submit_never_reached_the_disk_is_dropped",
    ),
    Plant(
        "take up an attempt of a fenced task that had ended",
        "d8mesh.core.broker.worker_sessions:WorkerSessions._take_over",
        " or _is_fenced_off(task, claim, token)",
        "",
        WORKER_SESSIONS + "an_ended_attempt_of_a_fenced_task_is_not_taken_up_again",
    ),
    Plant(
        "pass on what an earlier attempt says",
        "d8mesh.core.broker.streaming:Streaming.take",
        "if task is None or task.attempt.token != token:",
        "if task is None:",
        WORKER_SESSIONS + "what_an_earlier_attempt_says_is_not_passed_on",
    ),
    Plant(
        "forget idempotency keys at a restart",
        "d8mesh.edge.sqlite.journal:Journal._submitted",
        "if fact.key:",
        "if False:",
        ADMISSION + "an_idempotency_key_gives_the_first_tasks_or_a_conflict",
    ),
    Plant(
        "forget results that are on their way",
        "d8mesh.core.worker.session:WorkerSession._flush",
        "broker.unacknowledged[self._seq] = batch",
        "pass",
        "tests/core/worker/test_session.py::test_results_are_held_until_they_are_received",
    ),
    Plant(
        "delete from the outbox before the acknowledgement",
        "d8mesh.core.worker.session:WorkerSession._flush",
        "effects.append(SendOn(broker.key, results))",
        "effects += [SendOn(broker.key, results), *self._kept.forget([batch])]",
        WORKER + "expensive_results_and_those_without_a_broker_are_on_the_disk_first",
    ),
    Plant(
        "run a placed attempt in a slot",
        "d8mesh.core.worker.session:WorkerSession._work",
        "if placing:",
        "if False:",
        WORKER + "a_placed_attempt_runs_beside_the_slots_and_the_window_stays",
    ),
    Plant(
        "take where a task is to run for the next time too",
        "d8mesh.core.worker.session:WorkerSession._work",
        "placing, broker.placing = broker.placing, {}",
        "placing = broker.placing",
        WORKER + "a_placed_attempt_that_is_stopped_or_dropped_or_replaced_is_aborted",
    ),
    Plant(
        "fetch ahead by how long services take",
        "d8mesh.core.worker.session:WorkerSession.finished",
        "elsewhere += 1",
        "elsewhere += 0",
        WORKER + "how_long_services_take_does_not_change_what_is_fetched_ahead",
    ),
    Plant(
        "send an expensive result before it is on the worker's disk",
        "d8mesh.core.worker.session:WorkerSession.finished",
        "EXPENSIVE_S",
        "1e9",
        WORKER + "expensive_results_and_those_without_a_broker_are_on_the_disk_first",
    ),
    Plant(
        "tell of a cancellation before its commit",
        "d8mesh.core.broker.client_requests:ClientRequests._cancel",
        "self._state.answer(peer, request, answer, waits=True)",
        "self._state.answer(peer, request, answer)",
        PROMISES,
    ),
    Plant(
        "name a replay before its commit",
        "d8mesh.core.broker.client_requests:ClientRequests.replay_source",
        "self._state.answer(asked.peer, asked.request, task, waits=True)",
        "self._state.answer(asked.peer, asked.request, task)",
        PROMISES,
    ),
    Plant(
        "thank for a polling worker's report before its commit",
        "d8mesh.core.broker.polling:Polling._report",
        "self._state.answer(peer, request, {}, waits=True)",
        "self._state.answer(peer, request, {})",
        PROMISES,
    ),
    Plant(
        "fail what a worker that is back holds the result of",
        "d8mesh.core.broker.worker_sessions:WorkerSessions._held",
        "if task is not None and task.attempt.token == token:",
        "if False:",
        JOINING + "what_a_worker_finished_before_it_was_started_again_is_no_loss",
    ),
    Plant(
        "wait for ever for a worker that wants nothing",
        "d8mesh.core.broker.worker_registry:WorkerState.note_asking",
        "now - self.asked < ASKS_S",
        "True",
        "tests/core/broker/test_placement.py::test_nobody_waits_for_ever_for_a_worker_that_wants_nothing",
    ),
    Plant(
        "lay the log of a stopped journal over its backup",
        "d8mesh.edge.sqlite.journal:Journal.close",
        "is_kept=False",
        "is_kept=True",
        "tests/edge/test_sqlite.py::"
        "test_a_backup_put_in_the_place_of_a_stopped_journal_is_what_counts",
    ),
    Plant(
        "take batches in that were finished and not closed",
        "d8mesh.core.broker.restart:Restart._restore",
        "if len(finished) < batch.count:",
        "if True:",
        "tests/core/broker/test_dispatcher.py::"
        "test_batches_that_a_crash_left_unclosed_are_closed_after_the_restart",
    ),
    Plant(
        "wait anew after each start for a worker that is away",
        "d8mesh.core.broker.restart:Restart.give_up",
        "lease_s - self._waited.get(worker_id, 0.0)",
        "lease_s",
        RESTART + "a_broker_that_dies_again_and_again_gives_a_dead_worker_up",
    ),
    Plant(
        "wait less after a start for a worker that was back since",
        "d8mesh.core.broker.dispatcher:Dispatcher.tick",
        "if not self._restart.is_noted:",
        "if False:",
        RESTART + "a_worker_that_was_back_has_its_whole_grace_after_the_next_start",
    ),
    Plant(
        "end the list of open tasks at finished batches that are not closed",
        "d8mesh.edge.sqlite.reader:Reader._in_batch",
        "row = held.first if is_back else held.end - 1",
        "return",
        STORE + "open_tasks_are_listed_behind_finished_batches_that_are_not_closed[journal-1]",
    ),
    Plant(
        "ask without a pause for what cannot be read",
        "d8mesh.core.broker.scheduler:Scheduler._page_in",
        "tries and self._state.now < not_before",
        "False",
        SCHEDULER + "tasks_whose_data_cannot_be_read_fail_in_the_end_and_block_nobody",
    ),
    Plant(
        "cancel what nobody asked to cancel",
        "d8mesh.core.broker.worker_sessions:WorkerSessions._given_back",
        "self._returns.take(worker.worker_id, given, why, SERVICE_DOWN)",
        "self._outcomes.cancel([task.id for task in given])",
        SIMULATED,
    ),
    Plant(
        "let a deadline pass too early",
        "d8mesh.core.broker.state:BrokerState.after",
        "self.now + pause_s",
        "self.now + pause_s / 10",
        SIMULATED,
    ),
    Plant(
        "accept another deadline than was asked for",
        "d8mesh.core.broker.admission:Admission._spec",
        "state.at + group.deadline_s",
        "state.at + group.deadline_s / 10",
        SIMULATED,
    ),
    Plant(
        "use attempts up before they are used",
        "d8mesh.core.broker.returns:Returns._is_used_up",
        "errors + 1 >= task.batch.spec.max_attempts",
        "errors + 2 >= task.batch.spec.max_attempts",
        SIMULATED,
    ),
    Plant(
        "call everything poison that has used its attempts up",
        "d8mesh.core.broker.returns:Returns._fail_used_up",
        "is_loss and _takes_down(task, worker_id) >= POISON_LOSSES",
        "True",
        SIMULATED,
    ),
    Plant(
        "fail for a reason of its own",
        "d8mesh.core.broker.returns:Returns.attempt_failed",
        "self._outcomes.fail(worker_id, [task.id], [told.recorded(payload)], why=why)",
        'self._outcomes.fail_for([task.id], code="task.failed", why=why)',
        SIMULATED,
    ),
    Plant(
        "blame a worker that is heard of",
        "d8mesh.core.broker.worker_sessions:WorkerSessions.sweep",
        "worker.last_heard > state.policy.lease_s",
        "worker.last_heard > state.policy.heartbeat_s / 2",
        SIMULATED,
    ),
    Plant(
        "acknowledge a failure and forget it",
        "d8mesh.core.broker.worker_sessions:WorkerSessions._unusual_result",
        "self._returns.attempt_failed(name, task, claim.n, payload, is_final=is_final)",
        "pass",
        SIMULATED,
    ),
    Plant(
        "thank for a polling worker's failure and forget it",
        "d8mesh.core.broker.polling:Polling._report",
        "self._returns.attempt_failed(worker_id, task, task.n, payload, is_final=False)",
        "pass",
        POLLING + "failures_are_retried_and_late_reports_of_earlier_holders_count",
    ),
    Plant(
        "empty the hands before the outcome is recorded",
        "d8mesh.core.broker.outcomes:TaskOutcomes._end",
        "    self._state.record(fact)\n",
        "    self._state.registry.workers[by].outstanding.clear()\n    self._state.record(fact)\n",
        "tests/core/broker/test_outcomes.py::"
        "test_an_outcome_that_cannot_be_recorded_takes_nothing_from_anybody",
    ),
    Plant(
        "tell a fault of ours as the caller's",
        "d8mesh.core.broker.dispatcher:Dispatcher._refuse",
        "self.state.tell_fault(where, error)",
        "pass",
        "tests/core/broker/test_dispatcher.py::"
        "test_a_fault_of_ours_is_logged_and_told_as_no_fault_of_the_caller",
    ),
    Plant(
        "draw a random number that nobody can replay",
        "d8mesh.core.broker.returns:Returns._pause_after",
        "self._state.draw()",
        "__import__('random').random()",
        SIMULATED,
    ),
    Plant(
        "acknowledge the result of a fenced task and forget it",
        "d8mesh.core.broker.worker_sessions:WorkerSessions.results",
        "others.append(index)\n        else:",
        "others.append(index)\n        elif task.batch.spec.is_fenced:\n            continue\n"
        "        else:",
        SIMULATED,
    ),
    Plant(
        "forget on disk who has what",
        "d8mesh.edge.sqlite.journal:Journal._handed_out",
        'self._insert("handouts", values, width=4)',
        "pass",
        POWER_CUT,
    ),
    Plant(
        "forget on disk what went wrong before",
        "d8mesh.edge.sqlite.journal:Journal._requeued",
        'self._insert("failures", values, width=FAILURE_COLUMNS)',
        "pass",
        POWER_CUT,
    ),
    Plant(
        "mix up what tasks are to do on disk",
        "d8mesh.edge.sqlite.journal:Journal._submitted",
        "close_all(DATA_COLUMN, first, fact.payloads)",
        "close_all(DATA_COLUMN, first, fact.payloads[::-1])",
        POWER_CUT,
    ),
    Plant(
        "ask for nothing that was accepted at the second try",
        "d8mesh.core.client.session:ClientSession._accepted",
        "elif submission.is_resent and submission.is_watched:",
        "elif False:",
        CLIENT + "what_is_accepted_at_the_second_try_is_asked_for",
    ),
    Plant(
        "stay bound to what nobody waits for",
        "d8mesh.core.client.session:ClientSession.abandon",
        "self._awaited.forget(submission)",
        "pass",
        CLIENT + "what_is_abandoned_is_neither_sent_nor_awaited",
    ),
    Plant(
        "give a direct connection with an unknown past to the next call",
        "d8mesh.nodes.client.direct_call:DirectCalls.call",
        "self._let_go([direct_call], is_lost=is_lost)",
        "self._give_back(direct_call)",
        DIRECT_CALL + "a_lost_direct_call_goes_on_elsewhere_and_runs_nothing_twice",
    ),
    Plant(
        "take an old word for the orchestrator's",
        "d8mesh.nodes.client.direct_call:DirectCall._greet",
        "while self._link.receive(STALE_FRAMES):",
        "for frame in self._link.receive(STALE_FRAMES):\n"
        "        self._receive(frame, Submission('', 0, []), '', now)\n"
        "    while False:",
        LINK + "after_a_pause_nothing_old_counts",
    ),
)


@contextlib.contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """Put a fault into the running program, and take it out again.

    Raises:
        LookupError: its text is not there, or not just once: the code has changed.
    """
    module_name, _, path = plant.where.partition(":")
    module = importlib.import_module(module_name)
    owner: Any = module
    *outer, last = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    right = getattr(owner, last)
    source = textwrap.dedent(inspect.getsource(right))
    if source.count(plant.right) != 1:
        raise LookupError(f"{plant.where} has {plant.right!r} {source.count(plant.right)} times")
    made: dict[str, Any] = {}
    code = compile(source.replace(plant.right, plant.wrong), f"<planted: {plant.name}>", "exec")
    exec(code, module.__dict__, made)  # noqa: S102  a planted fault is code by nature
    try:
        _exchange(module, owner, right, made[last])
        yield
    finally:
        _exchange(module, owner, made[last], right)


def _exchange(module: ModuleType, owner: Any, old: Any, new: Any) -> None:
    """Put `new` wherever `old` is: in its class or module, and in tables of functions."""
    setattr(owner, new.__name__, new)
    for table in vars(module).values():
        if isinstance(table, dict):
            for key in [key for key, value in table.items() if value is old]:
                table[key] = new
