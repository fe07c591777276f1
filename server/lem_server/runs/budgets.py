"""What a run may cost before it is put aside."""

from __future__ import annotations

LOSSES_PER_RUN = 3
"""How many workers a run may lose before it is put aside as failed; a user's retry grants as many again."""
