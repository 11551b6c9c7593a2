"""The client's brain."""
