"""Ollama's interface: whatever speaks to an Ollama speaks to the whole mesh."""
