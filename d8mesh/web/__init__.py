"""The HTTP doors: the documented REST and the worker's status."""
