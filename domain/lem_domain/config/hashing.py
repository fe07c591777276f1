"""The identity of an experiment: SHA-256 over its canonical resolved configuration."""

from __future__ import annotations

import hashlib
import json

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig

HASH_VERSION = 1


def canonical_json(value: JsonValue) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, shortest float form, UTF-8.

    Raises:
        ValueError: the value holds NaN or an infinity, which JSON can't say.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def config_hash(config: ExperimentConfig) -> str:
    """SHA-256 (64 hex digits) over what differs from the defaults.

    Leaving defaults out keeps every hash when a later version adds a key, and makes equal spellings equal (an empty
    section and none at all, a written default and none). When a default itself changes, `HASH_VERSION` must change.
    """
    return hash_of_changes(config.model_dump(mode="json", exclude_defaults=True))


def hash_of_changes(changed: dict[str, JsonValue]) -> str:
    """The same of what is dumped without defaults."""
    content: JsonValue = {"version": HASH_VERSION, "config": _without_empty(changed)}
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _without_empty(value: JsonValue) -> JsonValue:
    if not isinstance(value, dict):
        return value
    pruned = {key: _without_empty(inner) for key, inner in value.items()}
    return {key: inner for key, inner in pruned.items() if inner != {}}
