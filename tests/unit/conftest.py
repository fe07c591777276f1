"""Settings of the unit tests."""

from __future__ import annotations

from hypothesis import settings

# Machines that run this are shared and noisy: no wall time decides a test.
settings.register_profile("lem", deadline=None, derandomize=True)
settings.load_profile("lem")
