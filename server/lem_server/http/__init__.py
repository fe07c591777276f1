"""HTTP for all capabilities: middleware, problem documents, paging, idempotency, OpenAPI."""
