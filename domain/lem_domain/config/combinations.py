"""Every combination that a campaign describes, one at a time: each of its experiments with each row of the sweep.

With several backends, an axis, a row or a section of the base that belongs to one backend applies to that one only.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from pydantic.types import JsonValue

from lem_domain.backends.registry import BackendName
from lem_domain.config.campaign import NAME, CampaignSpec
from lem_domain.config.documents import Document, flattened, merged, overlaps, pointer, value_at, with_value
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.sweep import INCLUDE, ZIP, Axis, Row, Sweep, parse_sweep
from lem_domain.config.validation import refused
from lem_domain.errors import FieldProblem

_SECTIONS: Final = frozenset(name.value for name in BackendName)
_DEFAULT_BACKEND: Final = BackendName(ExperimentConfig.model_fields["backend"].default).value


class Combination(NamedTuple):
    """One experiment before validation."""

    document: Document
    varied: dict[str, JsonValue]
    """What distinguishes it from the base: dotted path to value."""
    entry: int | None = None
    """Its index in `experiments`; None if the campaign lists none."""
    name: str | None = None
    """The name of the entry."""
    own: frozenset[str] = frozenset()
    """Paths that the entry sets."""


class Combinations:
    """The combinations of a campaign, generated again by every iteration, so that memory does not grow with them.

    Raises:
        ConfigurationError: sweep or experiments are malformed, or a part of them could never apply.
    """

    def __init__(self, spec: CampaignSpec) -> None:
        self._sweep = parse_sweep(spec.sweep)
        self._starts = tuple(_starts(spec))
        if problems := [*_name_problems(spec.experiments), *_swept_entries(self._starts, self._sweep)]:
            raise refused(problems)
        self.backends = backends_in(
            {**spec.experiment, "sweep": {**spec.sweep}, "experiments": list[JsonValue](spec.experiments)}
        )
        self._several = len(self.backends) > 1
        self._backend_axes = tuple(axis for axis in self._sweep.axes if "backend" in axis.paths)
        self._unmatched = set(range(len(self._sweep.exclude)))
        if problems := list(self._unused_sections(spec)):
            raise refused(problems)

    def count(self) -> int:
        """How many there are before any is excluded, computed without generating them."""
        total = 0
        for start in self._starts:
            by_backend = Counter({_backend_of(start.document): 1})
            for axis in self._backend_axes:
                column = axis.paths.index("backend")
                by_backend = Counter(str(row[column]) for row in axis.rows)
            for backend, rows in by_backend.items():
                total += rows * math.prod(len(axis.rows) for axis in self._axes_of(backend))
            total += sum(self._applies(row, start) for row in self._sweep.include)
        return total

    def __iter__(self) -> Iterator[Combination]:
        """For each experiment the product of the axes, the last axis fastest, then the included rows."""
        for start in self._starts:
            for swept in self._product(start):
                excluding = [
                    index for index, row in enumerate(self._sweep.exclude) if _matches(row, swept, start.document)
                ]
                self._unmatched.difference_update(excluding)
                if not excluding:
                    yield self._combined(start, swept)
            for row in self._sweep.include:
                if self._applies(row, start):
                    yield self._combined(start, row)

    def unmatched(self) -> tuple[int, ...]:
        """Entries of `exclude` that excluded nothing; known after an iteration."""
        return tuple(sorted(self._unmatched))

    def _product(self, start: Combination) -> Iterator[dict[str, JsonValue]]:
        # The backend goes first, since the other axes depend on it.
        for chosen in _product(self._backend_axes):
            backend = str(chosen.get("backend", _backend_of(start.document)))
            for others in _product(self._axes_of(backend)):
                yield {**chosen, **others}

    def _axes_of(self, backend: str) -> tuple[Axis, ...]:
        """The axes other than the backend's, each with the paths that apply to the backend."""
        axes = [axis for axis in self._sweep.axes if axis not in self._backend_axes]
        if not self._several:
            return tuple(axes)
        narrowed = []
        for axis in axes:
            kept = [column for column, path in enumerate(axis.paths) if _belongs(path, backend)]
            if kept:
                rows = tuple(tuple(row[column] for column in kept) for row in axis.rows)
                narrowed.append(Axis(tuple(axis.paths[column] for column in kept), rows, axis.pointer))
        return tuple(narrowed)

    def _applies(self, row: Row, start: Combination) -> bool:
        backend = str(row.get("backend", _backend_of(start.document)))
        return not self._several or all(_belongs(path, backend) for path in row)

    def _combined(self, start: Combination, swept: Row) -> Combination:
        document = start.document
        for path, value in swept.items():
            try:
                document = with_value(document, path, value)
            except ValueError as error:
                message = f"sweep path {path!r} leads through {str(error)!r}, which is a plain value; correct the path"
                raise refused((FieldProblem(pointer=pointer(("sweep", path)), message=message),)) from None
        if self._several:
            backend = _backend_of(document)
            document = {key: value for key, value in document.items() if _belongs(key, backend)}
        return start._replace(document=document, varied={**start.varied, **swept})

    def _unused_sections(self, spec: CampaignSpec) -> Iterator[FieldProblem]:
        """Swept paths of a backend that does not occur; with several backends, also sections of the base.

        With one backend the section in the base is a problem of every combination and reported there.
        """
        used = " and ".join(repr(name) for name in sorted(self.backends))
        paths = [(path, axis.pointer) for axis in self._sweep.axes for path in axis.paths]
        paths += [
            (path, pointer(("sweep", INCLUDE, index))) for index, row in enumerate(self._sweep.include) for path in row
        ]
        if self._several:
            paths += [(key, pointer((key,))) for key in spec.experiment]
        for path, at in paths:
            section = path.partition(".")[0]
            if section in _SECTIONS - self.backends:
                message = (
                    f"{path} is of backend {section!r}, but the campaign's is {used}; remove it or add the backend"
                )
                yield FieldProblem(pointer=at, message=message)


def backends_in(document: Mapping[str, JsonValue]) -> frozenset[str]:
    """Every backend that occurs in a campaign document, however invalid the rest of it is."""
    sweep = document.get("sweep")
    sweep = sweep if isinstance(sweep, dict) else {}
    columns = [sweep.get("backend"), *(group.get("backend") for group in _maps(sweep.get(ZIP)))]
    swept = [value for column in columns for value in (column if isinstance(column, list) else [column])]
    included = [row.get("backend") for row in _maps(sweep.get(INCLUDE))]
    if not any(isinstance(value, str) for value in swept):
        base = document.get("backend", _DEFAULT_BACKEND)
        swept = [entry.get("backend", base) for entry in _maps(document.get("experiments"))] or [base]
    return frozenset(value for value in (*swept, *included) if isinstance(value, str))


def _maps(value: JsonValue) -> list[Document]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _starts(spec: CampaignSpec) -> Iterator[Combination]:
    """The listed experiments merged over the base; the base itself if none are listed."""
    if not spec.experiments:
        yield Combination(spec.experiment, {})
    for index, entry in enumerate(spec.experiments):
        own = {key: value for key, value in entry.items() if key != NAME}
        name = entry.get(NAME)
        varied = dict(flattened(own))
        yield Combination(
            merged(spec.experiment, own), varied, index, name if isinstance(name, str) else None, frozenset(varied)
        )


def _name_problems(entries: Sequence[Mapping[str, JsonValue]]) -> Iterator[FieldProblem]:
    first: dict[str, int] = {}
    for index, entry in enumerate(entries):
        name = entry.get(NAME)
        at = pointer(("experiments", index, NAME))
        if name is not None and (not isinstance(name, str) or not 0 < len(name) <= 200):
            yield FieldProblem(pointer=at, message="a name is a text of 1 to 200 characters; correct it")
        elif isinstance(name, str) and first.setdefault(name, index) != index:
            message = f"experiment {first[name] + 1} of the list is also named {name!r}; give each a different name"
            yield FieldProblem(pointer=at, message=message)


def _swept_entries(starts: Sequence[Combination], sweep: Sweep) -> Iterator[FieldProblem]:
    for start in starts:
        for path, axis in itertools.product(start.varied, sweep.paths):
            if overlaps(path, axis):
                message = f"{path} is set here and swept as {axis}, so this has no effect; keep one of them"
                at = pointer(("experiments", start.entry or 0, *path.split(".")))
                yield FieldProblem(pointer=at, message=message)


def _product(axes: Sequence[Axis]) -> Iterator[dict[str, JsonValue]]:
    paths = [path for axis in axes for path in axis.paths]
    for rows in itertools.product(*(axis.rows for axis in axes)):
        yield dict(zip(paths, itertools.chain.from_iterable(rows), strict=True))


def _backend_of(document: Mapping[str, JsonValue]) -> str:
    return str(document.get("backend", _DEFAULT_BACKEND))


def _belongs(path: str, backend: str) -> bool:
    """Whether a path applies to a backend: it is universal, or in the backend's section."""
    section = path.partition(".")[0]
    return section == backend or section not in _SECTIONS


def _matches(row: Row, swept: Row, document: Mapping[str, JsonValue]) -> bool:
    return all(
        _equal(swept[path] if path in swept else value_at(document, path.split(".")), value)
        for path, value in row.items()
    )


def _equal(one: JsonValue, other: JsonValue) -> bool:
    """Equality of JSON: true is not 1, which Python considers equal."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
