"""Columns of a batch as text. Arrow computes whole columns, and lets other threads run meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc


def texts_changed(texts: pa.Array, change: Callable[[str], str]) -> pa.Array:
    """Apply a function to a column of texts, once per distinct text; null stays null."""
    encoded = texts.dictionary_encode()
    changed = pa.array([change(one) for one in encoded.dictionary.to_pylist()], pa.string())
    return changed.take(encoded.indices)


def utc_texts(times: pa.Array) -> pa.Array:
    """Return times as RFC 3339 with nanoseconds, for example `2026-03-01T09:30:00.000000001Z`."""
    # Without the time zone, for which Arrow would look into a database that containers often lack.
    return pc.strftime(times.cast(pa.timestamp("ns")), format="%Y-%m-%dT%H:%M:%SZ")
