"""Parses a campaign's `sweep`: axes, paths that change together, rows to include or to exclude."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from pydantic.types import JsonValue

from lem_domain.config.documents import overlaps, pointer
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.keys import key_paths, unknown_key_message
from lem_domain.config.validation import refused
from lem_domain.errors import FieldProblem

ZIP: Final = "zip"
INCLUDE: Final = "include"
EXCLUDE: Final = "exclude"
RESERVED: Final = (ZIP, INCLUDE, EXCLUDE)
"""Keys of a sweep that are no paths; no configuration key has one of these names."""
MAX_PATHS: Final = 100
"""Swept paths; each is compared with every other."""
MAX_ROWS: Final = 200
"""Entries of `include` and of `exclude`; each combination is compared with every one of them."""

Row = Mapping[str, JsonValue]


class Axis(NamedTuple):
    """Paths that change together: one path, or the paths of a zip group."""

    paths: tuple[str, ...]
    rows: tuple[tuple[JsonValue, ...], ...]
    """Each has one value per path."""
    pointer: str


class Sweep(NamedTuple):
    """A parsed sweep."""

    axes: tuple[Axis, ...] = ()
    include: tuple[Row, ...] = ()
    exclude: tuple[Row, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that an axis varies."""
        return tuple(path for axis in self.axes for path in axis.paths)


def parse_sweep(sweep: Mapping[str, Sequence[JsonValue]]) -> Sweep:
    """Parse and check a campaign's `sweep`.

    Raises:
        ConfigurationError: with every problem, each below `/sweep`.
    """
    problems: list[FieldProblem] = []
    axes = [
        Axis((path,), tuple((value,) for value in values), pointer(("sweep", path)))
        for path, values in sweep.items()
        if path not in RESERVED
    ]
    for index, group in enumerate(sweep.get(ZIP, ())):
        parsed = _zip_group(group, pointer(("sweep", ZIP, index)))
        if isinstance(parsed, Axis):
            axes.append(parsed)
        else:
            problems.append(parsed)
    for axis in axes:
        problems += _axis_problems(axis)
    for name in (INCLUDE, EXCLUDE):
        problems += _row_problems(name, sweep.get(name, ()))
    problems += _overlap_problems(axes)
    if problems:
        raise refused(problems)
    include, exclude = (
        tuple(row for row in sweep.get(name, ()) if isinstance(row, dict)) for name in (INCLUDE, EXCLUDE)
    )
    return Sweep(tuple(axes), include, exclude)


def _zip_group(group: JsonValue, at: str) -> Axis | FieldProblem:
    given = group if isinstance(group, dict) else {}
    columns = {path: values for path, values in given.items() if isinstance(values, list)}
    if not columns or len(columns) < len(given):
        example = "{output.max_tokens: [8, 16], window.min_duration_s: [5, 10]}"
        return FieldProblem(
            pointer=at, message=f"a zip group maps paths to lists of equal length, such as {example}; write it so"
        )
    lengths = {path: len(values) for path, values in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{path} has {length}" for path, length in lengths.items())
        return FieldProblem(
            pointer=at, message=f"the lists of a zip group must have equal length, but {shown}; make them equal"
        )
    return Axis(tuple(columns), tuple(zip(*columns.values(), strict=True)), at)


def _axis_problems(axis: Axis) -> Iterator[FieldProblem]:
    if not axis.rows:
        message = f"sweep.{axis.paths[0]} has no values; give at least one or remove it"
        yield FieldProblem(pointer=axis.pointer, message=message)
    for path in axis.paths:
        yield from _path_problems(path, axis.pointer)


def _row_problems(name: str, rows: Sequence[JsonValue]) -> Iterator[FieldProblem]:
    if len(rows) > MAX_ROWS:
        message = f"{name} has {len(rows)} entries; the limit is {MAX_ROWS}, so sweep more or list less"
        yield FieldProblem(pointer=pointer(("sweep", name)), message=message)
        return
    for index, row in enumerate(rows):
        at = pointer(("sweep", name, index))
        if not isinstance(row, dict) or not row:
            message = f"an entry of {name} maps paths to values, such as {{pytorch.batch_size: 8}}; write it so"
            yield FieldProblem(pointer=at, message=message)
            continue
        for path in row:
            yield from _path_problems(path, at)


def _overlap_problems(axes: Sequence[Axis]) -> Iterator[FieldProblem]:
    if (count := sum(len(axis.paths) for axis in axes)) > MAX_PATHS:
        message = f"the sweep varies {count} paths; the limit is {MAX_PATHS}, so move fixed values out of the sweep"
        yield FieldProblem(pointer="/sweep", message=message)
        return
    seen: list[str] = []
    for axis in axes:
        for path in axis.paths:
            clash = next((other for other in seen if overlaps(path, other)), None)
            if clash is not None:
                message = f"{path} and {clash} are swept, and one sets the other; keep one"
                yield FieldProblem(pointer=axis.pointer, message=message)
            seen.append(path)


def _path_problems(path: str, at: str) -> Iterator[FieldProblem]:
    if not all(path.split(".")):
        message = f"{path!r} is no path; write keys separated by dots, such as pytorch.batch_size"
        yield FieldProblem(pointer=at, message=message)
    elif path not in key_paths(ExperimentConfig):
        yield FieldProblem(pointer=at, message=unknown_key_message(path, key_paths(ExperimentConfig)))
