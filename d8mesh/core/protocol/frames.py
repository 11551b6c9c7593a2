"""What every message is made of: the layout of a frame, the forms of its fields, their bounds."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

#: Most tasks in one message (and in one atomic submit_batch): bounds a commit and a decode.
MAX_BATCH_TASKS: Final = 10_000
#: Largest data or result of one task: 32 MB; larger things belong into files.
MAX_PAYLOAD_BYTES: Final = 32 * 1024 * 1024
#: Largest frame: one largest payload and its envelope, or a batch cut to this size.
MAX_FRAME_BYTES: Final = MAX_PAYLOAD_BYTES + 1024 * 1024
#: Senders cut batches here, so that one message never holds the loop for long.
SOFT_FRAME_BYTES: Final = 4 * 1024 * 1024
#: Partial output is cut here: a thousand such messages may wait for who reads too slowly.
MAX_STREAM_BYTES: Final = 256 * 1024
#: Task types and models one worker may list: bounds the placement index.
MAX_NAMES: Final = 1000
#: Warnings beside the acknowledgement of one submit: nobody reads more.
MAX_WARNINGS: Final = 20
#: Most attempts a worker may hold at once: bounds a heartbeat's list.
MAX_WINDOW: Final = 4096
#: Of what a task wishes for, as `core.protocol.wish` writes it.
MAX_WISH_CHARS: Final = 1000
#: Of where a task came from: a door, an address and the name of a program.
MAX_SOURCE_CHARS: Final = 200

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
Text: TypeAlias = Annotated[str, Meta(max_length=1000)]
TaskId: TypeAlias = Annotated[str, Meta(min_length=18, max_length=30)]
Session: TypeAlias = Annotated[str, Meta(min_length=16, max_length=16, pattern="^[0-9a-v]{16}$")]
Proof: TypeAlias = Annotated[bytes, Meta(max_length=32)]
Token: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]
Window: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_WINDOW)]
Payload: TypeAlias = Annotated[bytes, Meta(max_length=MAX_PAYLOAD_BYTES)]
Names: TypeAlias = Annotated[list[Name], Meta(max_length=MAX_NAMES)]
Ids: TypeAlias = Annotated[list[TaskId], Meta(max_length=MAX_BATCH_TASKS)]
Tokens: TypeAlias = Annotated[list[Token], Meta(max_length=MAX_BATCH_TASKS)]
Payloads: TypeAlias = Annotated[list[Payload], Meta(max_length=MAX_BATCH_TASKS)]


class Frame(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Common layout options of everything on the wire."""
