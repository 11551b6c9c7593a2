"""Why an orchestrator does not take a connection, in words for people, and when to try again."""

from __future__ import annotations

import random
from typing import Final

from d8mesh.core.protocol.addresses import is_address, is_admissible
from d8mesh.core.protocol.membership import Verdict, fingerprint
from d8mesh.core.protocol.route import Route
from d8mesh.errors import (
    ForbiddenError,
    MeshKeyError,
    NotAdmittedError,
    OrchestratorKeyError,
    RevokedError,
)
from d8mesh.program import command_name

#: Pauses before the next try: the first, doubled each time, and the longest. Whoever is approved
#: gets in within seconds; one that is refused for good costs nobody anything.
_PAUSES_S: Final[dict[type[ForbiddenError], tuple[float, float]]] = {
    NotAdmittedError: (1.0, 4.0),
    RevokedError: (2.0, 15.0),
    OrchestratorKeyError: (0.5, 8.0),
    MeshKeyError: (2.0, 15.0),
}
#: Doublings after which no pause grows.
_MAX_DOUBLINGS: Final = 8


def refusal_of(
    verdict: Verdict | None, route: Route, own_key: bytes, on_the_way: str = ""
) -> ForbiddenError:
    """Return what a failed handshake means.

    Args:
        verdict: what the orchestrator said of our key; None: it did not answer as one that has
            the key of the route.
        route: where the connection led.
        own_key: our public key.
        on_the_way: what a REST port said that lets nothing of ours through.
    """
    host, told = route.address[0], fingerprint(own_key)
    if on_the_way:
        return MeshKeyError(
            f"{route.endpoint} refuses this machine's connection to the orchestrator: {on_the_way}"
        )
    theirs = fingerprint(route.server_key or b"")
    if verdict is None and route.is_http:
        return OrchestratorKeyError(
            f"no orchestrator with the key {theirs} answers through {route.endpoint}"
        )
    if verdict is None:
        return OrchestratorKeyError(
            f"what answers at {route.endpoint} does not have the key {theirs} of the orchestrator "
            "that is said to be there: nothing is said to it"
        )
    if is_address(host) and not is_admissible(host):
        return RevokedError(
            f"the orchestrator at {route.endpoint} refuses this machine: over public addresses "
            "it takes only who knows its D8_MESH_KEY, and only with D8_ALLOW_PUBLIC=1 there"
        )
    approve = f"run at the orchestrator: {command_name()} join approve {told}"
    if verdict is Verdict.REFUSED:
        return RevokedError(
            f"the orchestrator at {route.endpoint} has revoked the key {told} of this machine. To "
            f"let it in again, {approve}"
        )
    return NotAdmittedError(
        f"the orchestrator at {route.endpoint} has not let in the key {told} of this machine yet. "
        f"To let it in, {approve}"
    )


def pause_after(refusal: ForbiddenError, count: int) -> float:
    """Return how long to wait after the `count`-th refusal of its kind in a row, in seconds."""
    first_s, longest_s = _PAUSES_S[type(refusal)]
    pause_s = min(longest_s, first_s * float(2 ** min(count - 1, _MAX_DOUBLINGS)))
    return pause_s * random.uniform(0.75, 1.25)
