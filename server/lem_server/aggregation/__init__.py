"""From raw evidence to a result: pure functions, the database side stands apart in queries.py and service.py."""
