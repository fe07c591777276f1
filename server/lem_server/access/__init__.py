"""Who may do what: tokens, scopes, and the guard at the application's root."""
