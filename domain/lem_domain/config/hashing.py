"""The identity of an experiment: SHA-256 over its canonical resolved configuration."""

from __future__ import annotations

import hashlib
import json

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig

HASH_VERSION = 1


def canonical_json(value: JsonValue) -> bytes:
    """The canonical bytes of a JSON value: sorted keys, no spaces, shortest float form, UTF-8.

    Raises:
        ValueError: the value contains NaN or an infinity, which JSON does not have.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def config_hash(config: ExperimentConfig) -> str:
    """SHA-256 (64 hex digits) over the values that differ from the defaults.

    Without defaults, every hash stays the same when a later version adds a key, and different spellings have equal
    hashes (an empty section and none, a written default and none). A changed default needs a new `HASH_VERSION`.
    """
    return hash_of_changes(config.model_dump(mode="json", exclude_defaults=True))


def hash_of_changes(changed: dict[str, JsonValue]) -> str:
    """The hash of a configuration that is dumped without defaults."""
    content: JsonValue = {"version": HASH_VERSION, "config": _without_empty(changed)}
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _without_empty(value: JsonValue) -> JsonValue:
    if not isinstance(value, dict):
        return value
    pruned = {key: _without_empty(inner) for key, inner in value.items()}
    return {key: inner for key, inner in pruned.items() if inner != {}}
