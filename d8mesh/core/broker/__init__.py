"""The broker's brain."""
