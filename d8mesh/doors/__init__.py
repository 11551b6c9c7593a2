"""Who may ask what over HTTP: a room for each door."""
