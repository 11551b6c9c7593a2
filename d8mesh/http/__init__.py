"""The HTTP server; it knows no route."""
