"""PostgreSQL: connections, notifications, migrations, and the embedded server."""
