"""The calls about who may join: a door of its own, for who runs the orchestrator."""

from __future__ import annotations

from functools import partial

from d8mesh.core.protocol.access_tokens import ADMIN_ONLY
from d8mesh.core.protocol.messages import MemberChange
from d8mesh.doors.rest.described import JOIN_CALLS
from d8mesh.doors.rest.schemas import Who, body_of
from d8mesh.doors.rest.tasks import BROKER_ASK_S
from d8mesh.doors.waiting import Places, require_broker
from d8mesh.http.answers import Response, answer
from d8mesh.http.routes import Door, HttpRoute, Request, with_descriptions
from d8mesh.nodes.client.aio.node import AsyncNode


def join_door(mesh: AsyncNode, waits: Places) -> Door:
    """Return the door: it takes the mesh key or a token of an admin, from anybody."""
    schema = partial(body_of, Who)
    changes: tuple[MemberChange, ...] = ("approve", "revoke", "forget")
    route = partial(HttpRoute, asks_always=True)
    routes = [route("/api/join", partial(_listed, mesh))]
    routes += [
        route(f"/api/join/{action}", partial(_changed, mesh, action), schema, method="POST")
        for action in changes
    ]
    return Door(
        routes=with_descriptions(routes, JOIN_CALLS),
        before=lambda _: require_broker(mesh, waits),
        scopes=ADMIN_ONLY,
    )


async def _listed(mesh: AsyncNode, request: Request) -> Response:
    """``GET /api/join``"""
    return answer(await mesh.ask("members", {}, BROKER_ASK_S))


async def _changed(mesh: AsyncNode, action: MemberChange, request: Request) -> Response:
    """``POST /api/join/approve``, ``revoke``, ``forget``"""
    who: Who = request.value
    return answer(await mesh.ask(f"members.{action}", {"who": who.who}, BROKER_ASK_S))
