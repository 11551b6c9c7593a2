"""Finding an orchestrator, connecting to it, and connecting again; what client and worker share."""
