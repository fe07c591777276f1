"""HTTP for all capabilities: middleware, problems, paging, idempotency, health and documentation."""
