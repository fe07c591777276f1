"""Every configuration key with its type, default, unit, bounds and description, read from the models' JSON Schema.

This is the only walk over the configuration models: the reference page, the schema endpoint, the check of dotted paths,
the locations of problems and provenance all use it, so a new field appears in each of them without further code.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from pydantic import BaseModel
from pydantic.types import JsonValue

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
    """Dotted; `[]` is any index of a list."""
    type: str
    required: bool
    default: JsonValue
    """Null if there is none: the engine's default applies, or the feature is off."""
    unit: str | None
    constraint: str | None
    description: str
    engine_parameter: str | None
    """The engine's own name of the parameter, in a backend's section."""
    group: bool
    """Whether the key holds keys."""

    @property
    def section(self) -> str:
        """The first part of the path; a backend's name in that backend's section."""
        return self.path.partition(".")[0]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


@cache
def keys_of(model: type[BaseModel]) -> tuple[Key, ...]:
    """Every key of a model and of the models inside it, groups before their members."""
    return tuple(key for key, _ in described_keys(model.model_json_schema(mode="validation")))


@cache
def key_paths(model: type[BaseModel]) -> frozenset[str]:
    """Dotted paths of all keys, groups included."""
    return frozenset(key.path for key in keys_of(model))


def keys_at(model: type[BaseModel], location: Sequence[str | int]) -> tuple[str, ...]:
    """Names of the keys directly below a location; none if no model is there."""
    owner = "".join("[]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return tuple(key.name for key in keys_of(model) if key.path.rpartition(".")[0] == owner)


def unknown_key_message(key: str, known: Collection[str]) -> str:
    """`unknown key 'bacth_size'; did you mean 'batch_size'?`; without a similar key, the known ones."""
    similar = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if similar:
        return f"unknown key {key!r}; did you mean {similar[0]!r}?"
    if "." in key:
        return f"unknown key {key!r}; write the dotted path of a key, such as output.max_tokens"
    return f"unknown key {key!r}; the keys here are {', '.join(sorted(name for name in known if '.' not in name))}"


def described_keys(schema: Schema) -> Iterator[tuple[Key, Schema]]:
    """Every key of a JSON Schema with the part of the schema that describes it, groups before their members."""
    return _members(schema, schema.get("$defs", {}), "")


def alternatives(schema: Schema, definitions: Schema) -> Iterator[Schema]:
    """The members of a union with references resolved; the schema itself if it is no union."""
    if "$ref" in schema:
        yield from alternatives(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    elif "anyOf" in schema or "oneOf" in schema:
        for member in schema.get("anyOf", ()) or schema["oneOf"]:
            yield from alternatives(member, definitions)
    else:
        yield schema


def _members(owner: Schema, definitions: Schema, prefix: str) -> Iterator[tuple[Key, Schema]]:
    required = set(owner.get("required", ()))
    for name, described in owner.get("properties", {}).items():
        path = f"{prefix}{name}"
        found = tuple(alternatives(described, definitions))
        inner = [(one, "") for one in found]
        inner += [(one, "[]") for listed in found for one in _items(listed, definitions)]
        holders = [(one, suffix) for one, suffix in inner if "properties" in one]
        types = dict.fromkeys(_type(one, definitions) for one in found if one.get("type") != "null")
        descriptions = (one["description"] for one in (described, *found) if "description" in one)
        key = Key(
            path=path,
            type=" or ".join(types),
            required=name in required,
            default=described.get("default"),
            unit=described.get("x-unit"),
            constraint=_constraint(found, definitions),
            description=next(descriptions, ""),
            engine_parameter=described.get("x-engine-parameter"),
            group=bool(holders),
        )
        yield key, described
        for holder, suffix in holders:
            yield from _members(holder, definitions, f"{path}{suffix}.")


def _items(schema: Schema, definitions: Schema) -> tuple[Schema, ...]:
    """What a list holds; nothing if the schema is no list or does not restrict its values."""
    if schema.get("type") != "array" or not schema.get("items"):
        return ()
    return tuple(alternatives(schema["items"], definitions))


def _type(schema: Schema, definitions: Schema) -> str:
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", (schema.get("const"),)))
    if items := _items(schema, definitions):
        return f"list of {' or '.join(dict.fromkeys(_type(one, definitions) for one in items))}"
    if "pattern" in schema and schema.get("type") == "string":
        return f"text like `{schema['pattern']}`"
    return _TYPES.get(schema.get("type", ""), "any value")


def _constraint(members: tuple[Schema, ...], definitions: Schema) -> str | None:
    """The bounds of every alternative and of the values of lists."""
    found: list[str] = []
    for schema in (one for member in members for one in (member, *_items(member, definitions))):
        found += [f"{sign} {_number(schema[name])}" for name, sign in BOUNDS.items() if name in schema]
        found += [text.format(schema[name]) for name, text in _SIZES.items() if name in schema]
    return ", ".join(dict.fromkeys(found)) or None


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
