"""The JSON Schema of a campaign file, for editors and for whoever writes such files by program."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, Final

from lem_domain.config.campaign import CAMPAIGN_KEYS, CampaignSpec
from lem_domain.config.combinations import NAME
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.introspection import BOUNDS, alternatives, experiment_keys
from lem_domain.config.presets import builtin_presets
from lem_domain.config.sweep import EXCLUDE, INCLUDE, ZIP

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


@cache
def _made() -> Schema:
    experiment = ExperimentConfig.model_json_schema(mode="validation")
    campaign = CampaignSpec.model_json_schema(mode="validation")
    definitions = {**campaign.get("$defs", {}), **experiment.get("$defs", {})}
    keys: Schema = dict(experiment["properties"])
    listed = {NAME: {"type": "string", "minLength": 1, "maxLength": 200, "description": "What it is called."}}
    # A part of an experiment: its maps are merged with those below, so that nothing in them is required.
    definitions["Experiment"] = _object({**listed, **keys}, "What differs from the base.")
    own = {name: described for name, described in campaign["properties"].items() if name in CAMPAIGN_KEYS}
    own["sweep"] = _sweep(own["sweep"].get("description", ""), keys, definitions)
    own["experiments"] = {**own["experiments"], "items": {"$ref": "#/$defs/Experiment"}}
    names = {"anyOf": [{"enum": list(builtin_presets())}, {"type": "string", "minLength": 1}]}
    files = {"type": "string", "minLength": 1}
    properties = {
        "_extends": {
            "anyOf": [files, {"type": "array", "items": files}],
            "description": "Files that this one is laid over: maps merge deeply, lists replace. Relative to this file.",
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


def campaign_file_schema() -> Schema:
    """JSON Schema (2020-12) of a campaign file; a copy of one's own."""
    return copy.deepcopy(_made())


def _sweep(description: str, keys: Schema, definitions: Schema) -> Schema:
    """Every key by its dotted path, with the values it takes."""
    described = {key.path: key.description for key in experiment_keys() if "[]" not in key.path}
    for path, text in described.items():
        definitions[f"value.{path}"] = {**_value(path, keys, definitions), "description": text}
    rows: Schema = {path: {"$ref": f"#/$defs/value.{path}"} for path in described}
    axes = {
        path: {"type": "array", "minItems": 1, "items": rows[path], "description": text}
        for path, text in described.items()
    }
    definitions["Axes"] = _object(axes, "Paths with their values.")
    definitions["Row"] = _object(rows, "Paths with a value each.")
    groups = {
        ZIP: {
            "type": "array",
            "items": {"$ref": "#/$defs/Axes"},
            "description": "Groups of paths that change together.",
        },
        INCLUDE: {"type": "array", "items": {"$ref": "#/$defs/Row"}, "description": "Combinations beside the product."},
        EXCLUDE: {"type": "array", "items": {"$ref": "#/$defs/Row"}, "description": "Combinations to leave out."},
    }
    return _object({**groups, **axes}, description)


def _value(path: str, keys: Schema, definitions: Schema) -> Schema:
    """What may stand at a dotted path; without bounds, as a combination that is refused may be left out."""
    head, _, rest = path.partition(".")
    if rest:
        inner = next(one["properties"] for one in alternatives(keys[head], definitions) if "properties" in one)
        return _value(rest, inner, definitions)
    return _without_bounds({name: part for name, part in keys[head].items() if name != "default"})


def _without_bounds(schema: Schema) -> Schema:
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
    """What is missing may stand in a file that this one extends; the whole is checked once it is put together."""
    if isinstance(schema, dict):
        if isinstance(schema.get("required"), list):
            del schema["required"]
        for inner in schema.values():
            _require_nothing(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _require_nothing(inner)
