"""The configuration reference: its keys from the models, its proofs from the marks in the tests' sources."""
