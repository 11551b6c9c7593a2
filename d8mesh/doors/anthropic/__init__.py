"""Anthropic's interface, as its clients speak it: `/v1/messages`."""
