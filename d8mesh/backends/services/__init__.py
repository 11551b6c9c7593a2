"""The LLM services that a worker reaches: kept in sight, measured, and paused when they fail."""

from d8mesh.backends.services.pool import PoolListener, ServicePool
from d8mesh.backends.services.service import RequestClocks, Service

__all__ = ["RequestClocks", "Service", "ServicePool", "PoolListener"]
