"""One module per LLM service."""
