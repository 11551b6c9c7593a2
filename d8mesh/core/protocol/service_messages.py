"""What workers tell of the LLM services that they reach, and what the broker says of them.

A part of `messages`, where the directions are; `docs/PROTOCOL.md` has a section on it.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, field

from d8mesh.core.protocol.frames import (
    MAX_BATCH_TASKS,
    MAX_NAMES,
    Count,
    Frame,
    Ids,
    Name,
    Names,
    Seconds,
    Text,
    Window,
)

#: LLM services one worker may reach, and requests of the last minute it tells of each model.
MAX_SERVICES: Final = 64
MAX_RECENT: Final = 1000
#: Of what a service tells of a model: a license and a template, and no list of all tokens.
MAX_DESCRIPTION_BYTES: Final = 1024 * 1024
#: Of a model's details: Ollama has six.
MAX_DETAILS: Final = 32

# ---------------------------------------------------------------- worker to broker


class Budget(Frame, frozen=True):
    """What an account with a service in the cloud allows, and what this worker has used of it.

    A bound of 0 is none. A minute is any 60 seconds. `recent` is, of each request that this worker
    sent in the last minute, how many seconds ago that was, and its tokens; `day_requests` and
    `day_tokens` count what it sent since the day began that ends in `day_left_s`. For
    `blocked_s` from now nothing may be sent: `blocked_why`.
    """

    minute_requests: Count = 0
    minute_tokens: Count = 0
    day_requests_bound: Count = 0
    day_tokens_bound: Count = 0
    recent: Annotated[list[tuple[Seconds, Count]], Meta(max_length=MAX_RECENT)] = field(
        default_factory=list
    )
    day_requests: Count = 0
    day_tokens: Count = 0
    day_left_s: Seconds = 0.0
    blocked_s: Seconds = 0.0
    blocked_why: Text = ""


class OfferedModel(Frame, frozen=True):
    """A model that a service has installed, and how it did so far; 0 where nothing is known.

    `name` is what the service calls it, `can` what it is capable of, in Ollama's words
    (completion, tools, vision, insert, thinking, embedding); empty: the service does not tell.
    `slots` is how many requests it has proved to answer at the same time, and one to try if
    that is not settled. `requests`, `prompt_tokens` and `output_tokens` count since the worker's
    start. `paused` says why it gets no request until a probe has succeeded; empty: it gets them.
    `modified_at` (as the service writes it) and `details` (Ollama's object) are for who lists
    models; `context_tokens` is how many it is loaded with, else how many it could have;
    `vram_bytes` what it takes of a GPU; `expires_s` how long it stays loaded (-1: for ever, 0: not
    told).
    """

    name: Name
    digest: Annotated[str, Meta(max_length=128)] = ""
    can: Annotated[list[Name], Meta(max_length=20)] = field(default_factory=list)
    size_bytes: Count = 0
    is_loaded: bool = False
    slots: Window = 1
    load_s: Seconds = 0.0
    prompt_tokens_per_s: Seconds = 0.0
    output_tokens_per_s: Seconds = 0.0
    requests: Count = 0
    prompt_tokens: Count = 0
    output_tokens: Count = 0
    paused: Text = ""
    budget: Budget | None = None
    modified_at: Annotated[str, Meta(max_length=64)] = ""
    details: Annotated[dict[Name, object], Meta(max_length=MAX_DETAILS)] = field(
        default_factory=dict
    )
    context_tokens: Count = 0
    vram_bytes: Count = 0
    expires_s: Annotated[float, Meta(ge=-1, le=1e9)] = 0.0


class OfferedService(Frame, frozen=True):
    """An LLM service that a worker reaches.

    `id` is the same at all workers that reach the same one (an Ollama: machine id and port, or
    address and port; in the cloud: provider and a hash of the key). `kind` is its row in
    `backends.BACKENDS`. `slots` bounds the requests of all its models together (0: no bound).
    `default` runs what wishes for no model. `why`: the reason if it offers nothing now.
    """

    id: Name
    kind: Name
    machine: Text
    url: Text
    is_cloud: bool
    slots: Window
    default: Annotated[str, Meta(max_length=128)]
    models: Annotated[list[OfferedModel], Meta(max_length=MAX_NAMES)]
    why: Text = ""


class Services(Frame, frozen=True, tag=15):
    """All LLM services that a worker reaches, and the task types that they answer.

    Said after each `Welcome` and whenever more changes than `Measured` says. Tasks of these types
    come with a `Placed` from then on, beside the worker's window: the services' slots
    bound them. `held_ids[i]` runs at the service `held_services[i]` with `held_models[i]`.
    """

    types: Names
    services: Annotated[list[OfferedService], Meta(max_length=MAX_SERVICES)]
    held_ids: Ids
    held_services: Annotated[list[Name], Meta(max_length=MAX_BATCH_TASKS)]
    held_models: Annotated[list[Name], Meta(max_length=MAX_BATCH_TASKS)]


class Measured(Frame, frozen=True, tag=16):
    """Models of one service, as they are now: each replaces what was said of its name."""

    service: Name
    models: Annotated[list[OfferedModel], Meta(max_length=MAX_NAMES)]


class Described(Frame, frozen=True, tag=17):
    """All that a service tells of one of its models: a map in msgpack, passed on as it is.

    Said once for each content (`OfferedModel.digest`) in a session, after the `Services` or
    `Measured` that tells of the model.
    """

    service: Name
    model: Name
    payload: Annotated[bytes, Meta(max_length=MAX_DESCRIPTION_BYTES)]


# ---------------------------------------------------------------- broker to worker


class Placement(Frame, frozen=True):
    """Where an attempt is to run: a service of the worker's and a model there.

    `options` load the model: the same for it in the whole pool. `waiting`: how many more tasks
    wait for it; it had better stay loaded.
    """

    service: Name
    model: Name
    waiting: Count = 0
    options: dict[str, object] = field(default_factory=dict)


class Placed(Frame, frozen=True, tag=55):
    """`ids[i]`, which the next `Work` brings, is to run at `placements[i]`."""

    ids: Ids
    placements: Annotated[list[Placement], Meta(max_length=MAX_BATCH_TASKS)]


class Warm(Frame, frozen=True, tag=56):
    """Load a model: tasks for it will come."""

    placement: Placement
