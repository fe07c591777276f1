"""What can be configured, as this server's version knows it."""
