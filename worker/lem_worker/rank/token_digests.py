"""Digests of token ids, which compare runs without their texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np


def digest_of_tokens(token_ids: Sequence[int]) -> bytes:
    """SHA-256 over the ids as 64-bit little-endian integers."""
    return hashlib.sha256(np.asarray(token_ids, dtype="<i8").tobytes()).digest()


def digest_of_set(digests: Iterable[tuple[int, bytes]]) -> str:
    """SHA-256 over (prompt index, digest of tokens) pairs, sorted by index."""
    whole = hashlib.sha256()
    for index, digest in sorted(digests):
        whole.update(index.to_bytes(8, "little"))
        whole.update(digest)
    return whole.hexdigest()


class OutputLedger:
    """Keeps a digest of each prompt's output, and the ids of the first repetition if `keep_ids`."""

    def __init__(self, *, keep_ids: bool) -> None:
        self._digests: dict[int, bytes] = {}
        self._kept: dict[int, Sequence[int]] | None = {} if keep_ids else None
        self.repeats = True
        """Whether every later repetition generated the same tokens as the first."""

    def add(self, prompt_index: int, token_ids: Sequence[int]) -> None:
        """Add one request's generated token ids."""
        digest = digest_of_tokens(token_ids)
        first = self._digests.setdefault(prompt_index, digest)
        if first != digest:
            self.repeats = False
        if self._kept is not None:
            self._kept.setdefault(prompt_index, token_ids)

    def digest(self) -> str:
        """Digest of the first repetition, so that it is independent of the number of repetitions."""
        return digest_of_set(self._digests.items())

    def kept(self) -> Sequence[tuple[int, Sequence[int]]]:
        """(Prompt index, token ids) of the first repetition; empty unless `keep_ids`."""
        return sorted(self._kept.items()) if self._kept else ()
