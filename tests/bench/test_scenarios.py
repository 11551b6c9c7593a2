"""Each scenario runs, with hardly any tasks: what is asserted is that figures come, not which."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import (
    abuse,
    backlog,
    batches,
    curve,
    fuzz,
    hot_path,
    latency,
    recovery,
    rest,
    sealed,
    sides,
    start,
    throughput,
    workers,
)
from bench.constant import serving
from bench.findings import Findings
from bench.load import LoadJob, load_beside, run_load
from bench.mesh import mesh
from bench.plan import Plan
from bench.rig import STAGES

TINY = Plan(rounds=1, scale=0.001)

pytestmark = pytest.mark.timeout(240)


def cells(found: Findings) -> set[tuple[str, str, str]]:
    assert all(v >= 0 for table in found.tables for each in table.cells.values() for v in each)
    return {(table.title, *key) for table in found.tables for key in table.cells}


def test_throughput_measures_d8mesh_and_both_raw_loops() -> None:
    found = Findings()
    throughput.compare(found, TINY, 1, 64, "tiny")
    assert cells(found) == {
        (throughput.RATES, row, "tiny")
        for row in (throughput.MANY, throughput.SINGLE, throughput.RAW, throughput.BATCHED)
    }


@pytest.mark.slow
def test_what_encryption_costs_is_measured_beside_the_same_in_clear() -> None:
    found = cells(curve.measure(TINY))
    for side in (curve.ENCRYPTED.name, curve.CLEAR.name):
        assert {(sides.RATES, side, label) for label, _ in sides.PAYLOADS.values()} <= found
        assert (sides.ONE, side, "p50") in found
    assert (curve.OVER, sides.LATENCY, "p50") in found


@pytest.mark.slow
def test_sealed_measures_the_journal_and_the_whole_mesh() -> None:
    found = cells(sealed.measure(TINY))
    for side in (sealed.SEALED.name, sealed.PLAIN.name):
        assert (sealed.BATCHED, side, "tasks per second") in found
        assert {(sides.RATES, side, label) for label, _ in sides.PAYLOADS.values()} <= found
    assert {(sealed.SEALING, "time", label) for label in sealed.SIZES.values()} <= found
    assert (sealed.OVER, sides.THROUGHPUT, "64 B") in found


@pytest.mark.slow
def test_a_batch_by_the_door_measures_speed_and_memory() -> None:
    found = batches.measure(TINY)
    expected = {(batches.MEMORY, name, "peak") for name in ("broker", "web")}
    assert expected <= cells(found)
    assert (batches.SPEED, "answers", "lines/s") in cells(found)


@pytest.mark.slow
def test_bad_input_is_sent_and_what_must_hold_holds() -> None:
    found = fuzz.measure(TINY)
    rows = ("TXT records", "frames, decoded here", "frames, to the broker", "HTTP requests")
    told = {(table.title, *key) for table in found.tables for key in table.cells}
    assert {(fuzz.SENT, row, "refused") for row in rows} <= told
    assert {(fuzz.HELD, name, "memory growth, MiB") for name in ("broker", "web")} <= told


@pytest.mark.slow
def test_one_in_flight_measures_five_ways() -> None:
    found = Findings()
    latency.one_in_flight(found, TINY)
    rows = (latency.OURS, latency.HANDLES, latency.LOOP, latency.SYNCED, latency.BARE)
    assert {(latency.ONE, row, "p99") for row in rows} <= cells(found)
    for row in (
        latency.ONE_OVER_RAW,
        latency.HANDLES_OVER_RAW,
        latency.FLOOR_OVER_RAW,
        latency.ONE_OVER_FLOOR,
    ):
        assert (latency.RATIOS, row, "p50") in cells(found)
    assert len(found.series) == 5


def test_an_open_loop_counts_from_the_time_a_task_was_due() -> None:
    schedule = [0.001 * n for n in range(50)]
    with mesh(workers=1) as running, running.client() as client:
        times = latency.open_loop(client, schedule)
        assert len(times) == len(schedule)
        # All due at once: each waits for those before it, and that counts.
        burst = latency.open_loop(client, [0.0] * 50)
    assert burst == sorted(burst)


@pytest.mark.slow
def test_the_load_generator_reports_rate_and_times_and_can_run_beside() -> None:
    with serving("bench.load", "answer") as blind, serving("bench.constant") as constant:
        job = LoadJob(url=blind, kind="constant", connections=4, seconds=0.5)
        for each in (job, replace(job, url=constant)):
            seen = run_load(each)
            assert seen.cycles >= len(seen.times) > 0
            assert seen.errors == 0
        with load_beside(job) as beside:
            pass
        assert beside.seconds > 0
        assert beside.errors == 0


@pytest.mark.slow
def test_rest_measures_every_kind_of_request() -> None:
    found = Findings()
    with mesh(workers=1) as running:
        with running.client() as client:
            backlog.fill(client, 100)  # echoes; what polling workers fetch is theirs too
        for row, kind in ((rest.SUBMITS, "submit"), (rest.STATUS, "status"), (rest.WAITS, "wait")):
            job = LoadJob(url=running.url, kind=kind, connections=2, seconds=0.5)
            rest.load(found, row, job)
        rest.lay_out(running, 100)
        job = LoadJob(
            url=running.url, kind="poll", connections=2, seconds=0.3, task_type=rest.POLLED_TYPE
        )
        rest.load(found, rest.POLLING, job)
    column = rest.column(2)
    rows = (rest.SUBMITS, rest.STATUS, rest.WAITS, rest.POLLING)
    assert {(rest.RATES, row, column) for row in rows} <= cells(found)


@pytest.mark.slow
def test_long_queues_are_weighed_and_worked_on() -> None:
    found = Findings()
    backlog.fill_up(found, TINY, 0)
    backlog.run_at(found, TINY, 1000)
    assert found.table(backlog.SHORTEST, "tasks").latest("pending", backlog.column(1000)) >= 1000
    assert (backlog.MEMORY, backlog.RSS, backlog.column(10_000)) in cells(found)
    assert (backlog.COSTS, backlog.CPU, backlog.column(1000)) in cells(found)


@pytest.mark.slow
def test_a_swarm_of_one_slot_workers_serves_both_brokers() -> None:
    found = Findings()
    workers.compare(found, TINY, 7)
    assert (workers.OVER_RAW, "tasks per second", workers.column(7)) in cells(found)
    assert (workers.COSTS, workers.LOOP, workers.column(7)) in cells(found)


@pytest.mark.slow
def test_recovery_is_timed_from_the_kill_to_the_first_task_done() -> None:
    found = Findings()
    with mesh(workers=0) as running:
        with running.client() as client:
            backlog.fill(client, 2000)
        recovery.crash(found, running, "tiny")
    handed, done = (
        found.table(recovery.BACK, "s").latest(row, "tiny")
        for row in (recovery.FIRST_HANDED, recovery.FIRST_DONE)
    )
    assert 0 < handed <= done


@pytest.mark.slow
def test_idle_nodes_are_watched() -> None:
    found = Findings()
    start.watch_idle(found, TINY)
    assert (start.MEMORY, "worker 1", "RSS") in cells(found)
    assert {row for title, row, _ in cells(found) if title == start.CPU} == {
        *("launcher", "broker", "web", "worker 1"),
    }


def test_every_stage_of_the_hot_path_is_timed() -> None:
    found = Findings()
    hot_path.by_stage(found, TINY)
    for title in (hot_path.BY_STAGE, hot_path.ALONE):
        assert {(title, stage, "µs") for stage in STAGES} <= cells(found)
    assert found.table(hot_path.BY_STAGE, "").latest(hot_path.SUM, "µs") > 0


@pytest.mark.slow
def test_abuse_measures_both_doors_quiet_and_under_abuse() -> None:
    found = abuse.measure(TINY)
    rows, columns = (abuse.ZEROMQ, abuse.REST), (abuse.QUIET, abuse.ABUSED)
    expected = {(abuse.RATES, row, column) for row in rows for column in columns}
    assert expected | {(abuse.KEPT, row, abuse.KEPT) for row in rows} <= cells(found)
