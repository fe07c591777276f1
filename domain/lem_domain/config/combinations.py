"""Every combination that a campaign describes, one after another: its experiments, each through its sweep.

With more than one backend, an axis, a row and a section of the base that belong to one of them apply to it alone.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from pydantic.types import JsonValue

from lem_domain.backends.registry import BackendName
from lem_domain.config.campaign import CampaignSpec
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.shorthand import opened, to_be_merged
from lem_domain.config.sweep import INCLUDE, ZIP, Axis, Row, Sweep, overlaps, parse_sweep
from lem_domain.config.validation import pointer
from lem_domain.errors import ConfigurationError, FieldProblem

Document = dict[str, JsonValue]

_SECTIONS: Final = frozenset(name.value for name in BackendName)
_DEFAULT_BACKEND: Final = BackendName(ExperimentConfig.model_fields["backend"].default).value
NAME: Final = "name"
"""What an entry of `experiments` may be called; not a key of an experiment."""


class Combination(NamedTuple):
    """One experiment as it is written, before it is checked."""

    document: Document
    varied: dict[str, JsonValue]
    """What distinguishes it from the base: dotted path to value."""
    entry: int | None
    """Its place in `experiments`; None where the campaign lists none."""
    name: str | None
    """The entry's own."""
    own: frozenset[str] = frozenset()
    """Paths that the entry sets."""


class Combinations:
    """The combinations of a campaign; made again by every iteration, so that none is kept.

    Raises:
        ConfigurationError: sweep or experiments are no such thing, or something in them could never apply.
    """

    def __init__(self, spec: CampaignSpec) -> None:
        self._sweep = parse_sweep(spec.sweep)
        _refuse_names_given_twice(spec)
        self._starts = tuple(_starts(spec))
        _refuse_swept_entries(self._starts, self._sweep)
        self._backends = frozenset(self._all_backends())
        self._several = len(self._backends) > 1
        self._refuse_what_never_applies(spec)

    @property
    def exclude(self) -> tuple[Row, ...]:
        """What is left out of the combinations of axes."""
        return self._sweep.exclude

    @property
    def backends(self) -> frozenset[str]:
        """Every backend that occurs."""
        return self._backends

    def count(self) -> int:
        """How many there are before any is left out; computed, not counted."""
        total = 0
        for start in self._starts:
            by_backend = Counter({self._backend_of(start.document): 1})
            for axis in self._of_backend():
                place = axis.paths.index("backend")
                by_backend = Counter(str(row[place]) for row in axis.rows)
            for backend, rows in by_backend.items():
                total += rows * math.prod(len(axis.rows) for axis in self._others(backend))
            total += sum(self._applies(row, start) for row in self._sweep.include)
        return total

    def __iter__(self) -> Iterator[Combination]:
        """First every start with the axes, the last axis fastest; after it the rows that are included."""
        for start in self._starts:
            for first in self._products(self._of_backend()):
                backend = str(first.get("backend", self._backend_of(start.document)))
                for second in self._products(self._others(backend)):
                    swept = {**first, **second}
                    if not any(_matches(row, swept, start.document) for row in self._sweep.exclude):
                        yield self._combined(start, swept)
            for row in self._sweep.include:
                if self._applies(row, start):
                    yield self._combined(start, row)

    def unmatched(self) -> tuple[int, ...]:
        """Entries of `exclude` that leave nothing out."""
        left = set(range(len(self._sweep.exclude)))
        for start in self._starts:
            for first in self._products(self._of_backend()):
                if not left:
                    return ()
                backend = str(first.get("backend", self._backend_of(start.document)))
                for second in self._products(self._others(backend)):
                    swept = {**first, **second}
                    left -= {index for index in left if _matches(self._sweep.exclude[index], swept, start.document)}
        return tuple(sorted(left))

    # --- parts --------------------------------------------------------------------------------------------------------

    def _of_backend(self) -> tuple[Axis, ...]:
        """The axis that chooses the backend, if there is one: it goes first, since others depend on it."""
        return tuple(axis for axis in self._sweep.axes if "backend" in axis.paths)

    def _others(self, backend: str) -> tuple[Axis, ...]:
        return tuple(
            narrowed
            for axis in self._sweep.axes
            if "backend" not in axis.paths and (narrowed := self._for(axis, backend)) is not None
        )

    def _for(self, axis: Axis, backend: str) -> Axis | None:
        """The axis with the paths that the backend has; None without any."""
        if not self._several:
            return axis
        kept = [place for place, path in enumerate(axis.paths) if _belongs(path, backend)]
        if not kept:
            return None
        rows = tuple(tuple(row[place] for place in kept) for row in axis.rows)
        return Axis(tuple(axis.paths[place] for place in kept), rows, axis.pointer)

    def _applies(self, row: Row, start: Combination) -> bool:
        backend = str(row.get("backend", self._backend_of(start.document)))
        return not self._several or all(_belongs(path, backend) for path in row)

    def _products(self, axes: Sequence[Axis]) -> Iterator[dict[str, JsonValue]]:
        paths = [path for axis in axes for path in axis.paths]
        for rows in itertools.product(*(axis.rows for axis in axes)):
            yield dict(zip(paths, itertools.chain.from_iterable(rows), strict=True))

    def _combined(self, start: Combination, swept: Row) -> Combination:
        document = with_values(start.document, swept)
        if self._several:
            backend = self._backend_of(document)
            document = {key: value for key, value in document.items() if _belongs(key, backend)}
        return start._replace(document=document, varied={**start.varied, **swept})

    def _backend_of(self, document: Mapping[str, JsonValue]) -> str:
        return str(document.get("backend", _DEFAULT_BACKEND))

    def _all_backends(self) -> Iterator[str]:
        axes = self._of_backend()
        for axis in axes:
            yield from {str(row[axis.paths.index("backend")]) for row in axis.rows}
        if not axes:
            yield from {self._backend_of(start.document) for start in self._starts}
        yield from {str(row["backend"]) for row in self._sweep.include if "backend" in row}

    # --- what could never apply ---------------------------------------------------------------------------------------

    def _refuse_what_never_applies(self, spec: CampaignSpec) -> None:
        foreign = _SECTIONS - self._backends
        swept = [(path, axis.pointer) for axis in self._sweep.axes for path in axis.paths]
        swept += [
            (path, pointer(("sweep", "include", index)))
            for index, row in enumerate(self._sweep.include)
            for path in row
        ]
        if self._several:
            swept += [(key, pointer((key,))) for key in spec.experiment]
        used = " and ".join(repr(name) for name in sorted(self._backends))
        problems = tuple(
            FieldProblem(
                pointer=place,
                message=f"{path} is of backend {path.partition('.')[0]!r}, but the campaign's is {used}; remove it or "
                "add the backend",
            )
            for path, place in swept
            if path.partition(".")[0] in foreign
        )
        _refuse(problems)


def with_values(base: Mapping[str, JsonValue], values: Row) -> Document:
    """A document with dotted paths set; the base stays as it was.

    Raises:
        ConfigurationError: a path goes through a plain value.
    """
    result: Document = dict(base)
    for path, value in values.items():
        _set_path(result, path.split("."), value, path)
    return result


def merged(lower: Mapping[str, JsonValue], upper: Mapping[str, JsonValue]) -> Document:
    """Maps merge deeply, everything else is replaced."""
    result: Document = dict(lower)
    for key, value in upper.items():
        below, above = to_be_merged(key, result.get(key), value)
        result[key] = merged(below, above) if isinstance(below, dict) and isinstance(above, dict) else above
    return result


def flattened(document: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Every plain value or list with its dotted path."""
    for key, value in document.items():
        if isinstance(value, dict) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_at(document: Mapping[str, JsonValue], parts: Sequence[str]) -> JsonValue:
    """The value at a path; None where there is none."""
    value: JsonValue = dict(document)
    for part in parts:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def backends_in(document: Mapping[str, JsonValue]) -> frozenset[str]:
    """Every backend that a campaign file could mean, however wrong the rest of it is."""
    sweep = document.get("sweep")
    entries = document.get("experiments")
    found = [document.get("backend", _DEFAULT_BACKEND)]
    found += [entry.get("backend") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if isinstance(sweep, dict):
        axes = [sweep.get("backend")]
        rows = [row for name in (ZIP, INCLUDE) for row in _listed(sweep.get(name)) if isinstance(row, dict)]
        axes += [row.get("backend") for row in rows]
        found += [value for axis in axes for value in (_listed(axis) or [axis])]
    return frozenset(value for value in found if isinstance(value, str))


def _listed(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _starts(spec: CampaignSpec) -> Iterator[Combination]:
    if not spec.experiments:
        yield Combination(spec.experiment, {}, None, None)
    for index, entry in enumerate(spec.experiments):
        own = {key: value for key, value in entry.items() if key != NAME}
        name = entry.get(NAME)
        if name is not None and (not isinstance(name, str) or not 0 < len(name) <= 200):
            _refuse(
                (FieldProblem(pointer=f"/experiments/{index}/name", message="a name is a text of 1 to 200 characters"),)
            )
        document = merged(spec.experiment, own)
        varied = dict(flattened(own))
        yield Combination(document, varied, index, name if isinstance(name, str) else None, frozenset(varied))


def _refuse_names_given_twice(spec: CampaignSpec) -> None:
    """What is compared must be told apart."""
    first: dict[JsonValue, int] = {}
    problems = []
    for index, entry in enumerate(spec.experiments):
        name = entry.get(NAME)
        if isinstance(name, str) and first.setdefault(name, index) != index:
            message = f"experiment {first[name] + 1} of the list is named {name!r} too; give each a name of its own"
            problems.append(FieldProblem(pointer=pointer(("experiments", index, NAME)), message=message))
    _refuse(problems)


def _refuse_swept_entries(starts: Sequence[Combination], sweep: Sweep) -> None:
    swept = sweep.paths
    _refuse(
        tuple(
            FieldProblem(
                pointer=pointer(("experiments", start.entry, *path.split("."))),
                message=f"{path} is set here and swept as {axis}, so that this would have no effect; keep one of them",
            )
            for start in starts
            if start.entry is not None
            for path in start.varied
            for axis in swept
            if overlaps(path, axis)
        )
    )


def _refuse(problems: Sequence[FieldProblem]) -> None:
    if problems:
        raise ConfigurationError(problems[0].message, tuple(problems))


def _belongs(path: str, backend: str) -> bool:
    """Whether a path means something to a backend: it is universal, or of its own section."""
    head = path.partition(".")[0]
    return head == backend or head not in _SECTIONS


def _matches(row: Row, swept: Row, document: Mapping[str, JsonValue]) -> bool:
    return all(
        _equal(swept[path] if path in swept else value_at(document, path.split(".")), value)
        for path, value in row.items()
    )


def _equal(one: JsonValue, other: JsonValue) -> bool:
    """As JSON has it: true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _set_path(target: Document, parts: list[str], value: JsonValue, path: str) -> None:
    """Set a dotted path, copying every map on the way."""
    head, *rest = parts
    inner = target.get(head)
    if path == "model" and isinstance(inner, dict) and isinstance(value, str):
        rest = ["id"]
    if not rest:
        target[head] = value
        return
    if path.startswith(f"{head}."):
        inner = opened(head, inner)
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        message = f"sweep path {path!r} goes through {head!r}, which is a plain value; correct the path"
        raise ConfigurationError(message, (FieldProblem(pointer=pointer(("sweep", path)), message=message),))
    copy = dict(inner)
    target[head] = copy
    _set_path(copy, rest, value, path)
