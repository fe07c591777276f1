"""Requests and answers of the REST API, one module per capability."""
