"""The JSON Schema of a campaign file, for editors and programs, and the lists of its keys."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, Final

from lem_domain.config.campaign import CAMPAIGN_KEYS, NAME, CampaignSpec
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.keys import BOUNDS, Key, described_keys, keys_of
from lem_domain.config.presets import builtin_presets
from lem_domain.config.sweep import EXCLUDE, INCLUDE, ZIP

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def experiment_keys() -> tuple[Key, ...]:
    """The keys of an experiment, universal ones and those of every backend, groups before their members."""
    return keys_of(ExperimentConfig)


def campaign_keys() -> tuple[Key, ...]:
    """The keys of a campaign except those of its experiments."""
    return tuple(key for key in keys_of(CampaignSpec) if key.section in CAMPAIGN_KEYS)


def campaign_file_schema() -> Schema:
    """JSON Schema (2020-12) of a campaign file; a copy that the caller may change."""
    return copy.deepcopy(_campaign_file_schema())


@cache
def _campaign_file_schema() -> Schema:
    experiment = ExperimentConfig.model_json_schema(mode="validation")
    campaign = CampaignSpec.model_json_schema(mode="validation")
    definitions = {**campaign.get("$defs", {}), **experiment.get("$defs", {})}
    keys: Schema = dict(experiment["properties"])
    listed = {NAME: {"type": "string", "minLength": 1, "maxLength": 200, "description": "Display name."}}
    definitions["Experiment"] = _object({**listed, **keys}, "Keys that differ from the base.")
    own = {name: described for name, described in campaign["properties"].items() if name in CAMPAIGN_KEYS}
    own["sweep"] = _sweep(own["sweep"].get("description", ""), experiment, definitions)
    own["experiments"] = {**own["experiments"], "items": {"$ref": "#/$defs/Experiment"}}
    names = {"anyOf": [{"enum": list(builtin_presets())}, {"type": "string", "minLength": 1}]}
    files = {"type": "string", "minLength": 1}
    properties = {
        "_extends": {
            "anyOf": [files, {"type": "array", "items": files}],
            "description": "Files that this file overrides: maps merge deeply, lists replace. Relative to this file.",
        },
        "presets": {
            "anyOf": [names, {"type": "array", "items": names}],
            "description": "Named sets of values, applied in order below the file's own; a path names a file.",
        },
        **own,
        **keys,
    }
    _require_nothing(definitions)
    return {
        "$schema": DIALECT,
        "title": "LEM campaign file",
        **_object(properties, "What is measured, what is varied, how often and in which order."),
        "$defs": definitions,
    }


def _sweep(description: str, experiment: Schema, definitions: Schema) -> Schema:
    """Every key by its dotted path, with the values that it accepts."""
    rows: Schema = {}
    axes: Schema = {}
    for key, described in described_keys(experiment):
        if "[]" in key.path:
            continue
        value = {name: part for name, part in described.items() if name != "default"}
        definitions[f"value.{key.path}"] = {**_without_bounds(value), "description": key.description}
        rows[key.path] = {"$ref": f"#/$defs/value.{key.path}"}
        axes[key.path] = {"type": "array", "minItems": 1, "items": rows[key.path], "description": key.description}
    definitions["Axes"] = _object(axes, "Paths with their values.")
    definitions["Row"] = _object(rows, "Paths with a value each.")
    groups = {
        name: {"type": "array", "items": {"$ref": f"#/$defs/{items}"}, "description": text}
        for name, items, text in (
            (ZIP, "Axes", "Groups of paths that change together."),
            (INCLUDE, "Row", "Combinations in addition to the product."),
            (EXCLUDE, "Row", "Combinations to leave out."),
        )
    }
    return _object({**groups, **axes}, description)


def _without_bounds(schema: Schema) -> Schema:
    """The schema without bounds: a value outside them makes a refused combination, which `on_refused` may skip."""
    kept = {name: part for name, part in schema.items() if name not in BOUNDS}
    if "anyOf" in kept:
        kept["anyOf"] = [_without_bounds(one) for one in kept["anyOf"]]
    return kept


def _object(properties: Schema, description: str) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "description": description,
        "properties": properties,
    }


def _require_nothing(schema: Any) -> None:
    """Remove every `required`: the missing key may be in a file that this one extends, or in the base."""
    if isinstance(schema, dict):
        if isinstance(schema.get("required"), list):
            del schema["required"]
        for inner in schema.values():
            _require_nothing(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _require_nothing(inner)
