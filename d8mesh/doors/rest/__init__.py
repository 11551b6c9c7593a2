"""The documented REST."""
