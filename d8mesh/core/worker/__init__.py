"""The worker's brain."""
