"""Every key of a model by its dotted path."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel


@cache
def key_paths(model: type[BaseModel]) -> frozenset[str]:
    """Dotted paths of all keys, sections included; what lies inside lists is left out."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        found.add(name)
        inner = _model_of(field.annotation)
        if inner is not None:
            found.update(f"{name}.{path}" for path in key_paths(inner))
    return frozenset(found)


def unknown_path_message(path: str, known: Collection[str]) -> str:
    """There is no such key, and which one may be meant."""
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    return f"there is no key {path!r}; " + (f"did you mean {near[0]!r}?" if near else "write a key's dotted path")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for member in get_args(annotation) if (found := _model_of(member)) is not None), None)
