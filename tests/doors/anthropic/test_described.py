"""What is said of Anthropic's calls is what they read."""

from __future__ import annotations

from d8mesh.doors.anthropic.described import MessageBody
from d8mesh.doors.anthropic.message_request import MESSAGE_REQUEST_FIELDS


def test_the_fields_that_are_said_are_those_that_are_read() -> None:
    refused = {"mcp_servers"}
    assert set(MessageBody.__struct_fields__) == MESSAGE_REQUEST_FIELDS | refused
