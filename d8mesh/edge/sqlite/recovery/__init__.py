"""What can be read of a damaged journal or outbox, and a new one of it."""
