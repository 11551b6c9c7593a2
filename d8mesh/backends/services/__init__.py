"""The LLM services that a worker reaches, as one: kept in sight, measured, paused when they fail."""

from d8mesh.backends.services.pool import ServicePool, Told
from d8mesh.backends.services.service import Service

__all__ = ["Service", "ServicePool", "Told"]
