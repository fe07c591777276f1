"""What server, worker and client share: pure models and rules, depending on pydantic alone."""
