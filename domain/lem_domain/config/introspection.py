"""Every configuration key with what its model says about it: the source of the reference page, the schema endpoint and
the tests' parameter matrix. It reads the models' own JSON Schema, so that a new key appears by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from pydantic import BaseModel
from pydantic.types import JsonValue

from lem_domain.backends.registry import BackendName
from lem_domain.config.campaign import CAMPAIGN_KEYS, CampaignSpec
from lem_domain.config.experiment import ExperimentConfig

Schema = Mapping[str, Any]

_TYPES: Final = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "object": "map",
    "array": "list",
    "null": "null",
}
BOUNDS: Final = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_SIZES: Final = {
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} values",
    "maxItems": "at most {} values",
    "maxProperties": "at most {} keys",
}


class Key(NamedTuple):
    """One key of a configuration file."""

    path: str
    """Dotted; `[]` stands for any place in a list."""
    type: str
    required: bool
    default: JsonValue
    """Null where there is none: the engine's own default applies, or nothing happens."""
    unit: str | None
    constraint: str | None
    description: str
    engine_parameter: str | None
    """The engine's own name for it, in a backend's section."""
    group: bool
    """Whether it holds keys of its own."""

    @property
    def backend(self) -> BackendName | None:
        """The backend whose section it stands in; None in the universal tier."""
        head = self.path.partition(".")[0]
        return BackendName(head) if head in set(BackendName) else None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


@cache
def experiment_keys() -> tuple[Key, ...]:
    """Both tiers of one experiment, groups before their members."""
    return keys_of(ExperimentConfig)


@cache
def campaign_keys() -> tuple[Key, ...]:
    """The keys that a campaign has beside those of its experiments."""
    return tuple(key for key in keys_of(CampaignSpec) if key.path.partition(".")[0] in CAMPAIGN_KEYS)


def keys_of(model: type[BaseModel]) -> tuple[Key, ...]:
    """Every key below a model, groups before their members."""
    schema = model.model_json_schema(mode="validation")
    return tuple(_members(schema, schema.get("$defs", {}), ""))


def _members(owner: Schema, definitions: Schema, prefix: str) -> Iterator[Key]:
    required = set(owner.get("required", ()))
    for name, described in owner.get("properties", {}).items():
        path = f"{prefix}{name}"
        found = tuple(alternatives(described, definitions))
        holders = [(one, "") for one in found if "properties" in one]
        holders += [
            (inner, "[]")
            for one in found
            if one.get("type") == "array"
            for inner in alternatives(one.get("items", {}), definitions)
            if "properties" in inner
        ]
        yield Key(
            path=path,
            type=" or ".join(dict.fromkeys(_type(one, definitions) for one in found if not _is_null(one))),
            required=name in required,
            default=described.get("default"),
            unit=described.get("x-unit"),
            constraint=_constraint(found, definitions),
            description=described.get("description")
            or next((one["description"] for one in found if "description" in one), ""),
            engine_parameter=described.get("x-engine-parameter"),
            group=bool(holders),
        )
        for holder, suffix in holders:
            yield from _members(holder, definitions, f"{path}{suffix}.")


def alternatives(schema: Schema, definitions: Schema) -> Iterator[Schema]:
    """The members of a union, references followed; the thing itself where it is none."""
    if "$ref" in schema:
        yield from alternatives(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    elif "anyOf" in schema or "oneOf" in schema:
        for member in schema.get("anyOf", ()) or schema["oneOf"]:
            yield from alternatives(member, definitions)
    else:
        yield schema


def _is_null(schema: Schema) -> bool:
    return schema.get("type") == "null"


def _type(schema: Schema, definitions: Schema) -> str:
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", (schema.get("const"),)))
    if schema.get("type") == "array" and schema.get("items"):
        inner = dict.fromkeys(_type(one, definitions) for one in alternatives(schema["items"], definitions))
        return f"list of {' or '.join(inner)}"
    if "pattern" in schema and schema.get("type") == "string":
        return f"text like `{schema['pattern']}`"
    return _TYPES.get(schema.get("type", ""), "any value")


def _constraint(members: tuple[Schema, ...], definitions: Schema) -> str | None:
    """The bounds of every alternative, and of what lists and maps hold."""
    found: list[str] = []
    for one in members:
        held = alternatives(one["items"], definitions) if one.get("type") == "array" and "items" in one else ()
        for schema in (one, *held):
            found += [f"{sign} {_number(schema[name])}" for name, sign in BOUNDS.items() if name in schema]
            found += [text.format(schema[name]) for name, text in _SIZES.items() if name in schema]
    return ", ".join(dict.fromkeys(found)) or None


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
