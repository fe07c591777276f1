"""Digests of token ids, so that runs can be compared without keeping their texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np


def digest_of_tokens(token_ids: Sequence[int]) -> bytes:
    """SHA-256 over the ids as 64-bit little-endian integers."""
    return hashlib.sha256(np.asarray(token_ids, dtype="<i8").tobytes()).digest()


def digest_of_set(digests: Iterable[tuple[int, bytes]]) -> str:
    """SHA-256 over (prompt index, digest of tokens), in the order of the indices, whatever order they came in."""
    whole = hashlib.sha256()
    for index, digest in sorted(digests):
        whole.update(index.to_bytes(8, "little"))
        whole.update(digest)
    return whole.hexdigest()


class OutputLedger:
    """Keeps the digest of what was generated for each prompt, and of the first repetition also the ids if asked to."""

    def __init__(self, *, keep_ids: bool) -> None:
        self._digests: dict[int, bytes] = {}
        self._kept: dict[int, Sequence[int]] | None = {} if keep_ids else None
        self.repeats = True
        """Whether every later repetition gave the same tokens as the first."""

    def add(self, prompt_index: int, token_ids: Sequence[int]) -> None:
        """One request's generated token ids."""
        digest = digest_of_tokens(token_ids)
        first = self._digests.setdefault(prompt_index, digest)
        if first != digest:
            self.repeats = False
        if self._kept is not None:
            self._kept.setdefault(prompt_index, token_ids)

    def digest(self) -> str:
        """Of the first repetition, so that it doesn't depend on how many there were."""
        return digest_of_set(self._digests.items())

    def kept(self) -> Sequence[tuple[int, Sequence[int]]]:
        """The ids of the first repetition by prompt index; empty unless they were to be kept."""
        return sorted(self._kept.items()) if self._kept else ()
