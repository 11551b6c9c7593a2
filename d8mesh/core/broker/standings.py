"""How services stand to a task, as it is told to people: plain data.

`core.broker.services` and `core.broker.routing` make these of what they decide by, `explain` and
`models` make words of them. So what is said is what was decided.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Obstacle(StrEnum):
    """Why a service gets no task of a wish now."""

    #: no live worker reaches it
    AWAY = "away"
    #: a worker reaches it and it offers nothing: `Standing.why`
    DOWN = "down"
    #: it has no such model
    NOT_INSTALLED = "not_installed"
    #: its model cannot do what the task needs: `Standing.lacks`
    LACKS = "lacks"
    #: its model proved too large for it, or such: `Standing.why`
    DOES_NOT_FIT = "does_not_fit"
    #: it is in the cloud, where the task may not go; or only if the LAN cannot begin soon
    CLOUD_FORBIDDEN = "cloud_forbidden"
    CLOUD_OVERFLOW_ONLY = "cloud_overflow_only"
    #: the task wishes for another machine
    ELSEWHERE = "elsewhere"
    #: the task prefers a model that somebody has
    SECOND_CHOICE = "second_choice"
    #: it failed and gets nothing until a probe succeeds: `Standing.why`, `until_s`
    PAUSED = "paused"
    #: what its account allows is used up: `Standing.why`, `until_s`
    BUDGET_USED = "budget_used"
    #: it is being loaded: one request at a time until it is
    LOADING = "loading"
    #: all its slots are taken
    FULL = "full"
    #: it failed this task: others are tried first
    FAILED_BEFORE = "failed_before"
    #: it is free, and those that are quicker will have the task done sooner
    HELD_BACK = "held_back"
    #: its last slot is kept for who waits at a screen
    RESERVED = "reserved"


class Standing(Struct, frozen=True, kw_only=True):
    """How one model of one service stands to a task that waits; `model` is "" if it has none.

    `until_s`: seconds until that may change by itself, None: nobody knows. `estimate_s`: seconds
    that the task would take there, loading included; None where it cannot be run.
    """

    service: str
    machine: str
    kind: str
    is_cloud: bool
    model: str
    #: None: it could have the task now
    obstacle: Obstacle | None
    is_loaded: bool = False
    in_flight: int = 0
    slots: int = 0
    until_s: float | None = None
    why: str = ""
    lacks: tuple[str, ...] = ()
    estimate_s: float | None = None


class Decision(Struct, frozen=True, kw_only=True):
    """Where one attempt of a task was placed, and who else could have had it.

    `candidates` are as they stood then, the chosen one among them.
    """

    task_id: str
    attempt: int
    service: str
    model: str
    #: Unix seconds, and how long the task had waited since it could first have been run
    at: float
    waited_s: float
    candidates: tuple[Standing, ...] = ()


class BudgetLeft(Struct, frozen=True, kw_only=True):
    """What an account still allows, over all workers; None: without a bound."""

    minute_requests: int | None = None
    minute_tokens: int | None = None
    day_requests: int | None = None
    day_tokens: int | None = None
    #: nothing is sent for so long, and why
    blocked_s: float = 0.0
    blocked_why: str = ""


class ModelView(Struct, frozen=True, kw_only=True):
    """A model of a service, as it stands now; 0 where nothing is known."""

    name: str
    digest: str = ""
    can: tuple[str, ...] = ()
    size_bytes: int = 0
    is_loaded: bool = False
    is_loading: bool = False
    slots: int = 1
    in_flight: int = 0
    load_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    output_tokens_per_s: float = 0.0
    requests: int = 0
    #: why it gets nothing now, and in how many seconds it is probed (None: nobody knows)
    paused: str = ""
    probed_in_s: float | None = None
    budget: BudgetLeft | None = None


class ServiceView(Struct, frozen=True, kw_only=True):
    """A service, as it stands now; `workers` are the live ones that reach it."""

    id: str
    kind: str
    machine: str
    url: str
    is_cloud: bool
    workers: tuple[str, ...]
    #: bounds the requests of all its models together; 0: no bound
    slots: int = 0
    in_flight: int = 0
    default: str = ""
    #: the reason if it offers nothing now
    why: str = ""
    #: while it offers nothing: names of the models that it had
    awaited: tuple[str, ...] = ()
    models: tuple[ModelView, ...] = ()
