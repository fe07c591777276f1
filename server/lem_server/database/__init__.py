"""The one store: PostgreSQL, its engine, its embedded form and its migrations."""
