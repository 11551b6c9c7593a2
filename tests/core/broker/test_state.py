"""What the parts share."""

from __future__ import annotations

from d8mesh.core.broker.state import BrokerState, CatchUp, Policy, Retry


def test_timers_of_one_moment_keep_their_order() -> None:
    state = BrokerState(Policy(broker_id="o", mesh="m"), 1, now=10.0)
    state.after(2.0, Retry("b"))
    state.after(1.0, CatchUp())
    state.after(2.0, Retry("a"))
    assert sorted(state.timers) == [
        (11.0, 2, CatchUp()),
        (12.0, 1, Retry("b")),
        (12.0, 3, Retry("a")),
    ]
