"""Access tokens, their scopes, and the authentication of requests."""
