"""Writes docs/reference/: keys from the models, proofs from the marks in the tests, and the OpenAPI document."""
