"""The FastAPI application over one PostgreSQL."""
