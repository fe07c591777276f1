"""What a campaign varies, read from its `sweep`: axes, paths that change together, rows that are added or left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.key_paths import key_paths, unknown_path_message
from lem_domain.config.validation import pointer, sentence
from lem_domain.errors import ConfigurationError, FieldProblem

ZIP: Final = "zip"
INCLUDE: Final = "include"
EXCLUDE: Final = "exclude"
RESERVED: Final = (ZIP, INCLUDE, EXCLUDE)
"""Keys of a sweep that are no paths; no configuration key has one of these names."""
MAX_PATHS: Final = 100
"""Paths that a sweep varies: every one is held against every other."""
MAX_ROWS: Final = 200
"""Entries of `include` and of `exclude`: each combination is held against every one of them."""

Row = Mapping[str, JsonValue]


class Axis(NamedTuple):
    """Paths that change together: one, or the several of a zip group."""

    paths: tuple[str, ...]
    rows: tuple[tuple[JsonValue, ...], ...]
    """Each has a value per path."""
    pointer: str


class Sweep(NamedTuple):
    """What is varied."""

    axes: tuple[Axis, ...] = ()
    include: tuple[Row, ...] = ()
    exclude: tuple[Row, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that an axis varies."""
        return tuple(path for axis in self.axes for path in axis.paths)


def parse_sweep(sweep: Mapping[str, Sequence[JsonValue]]) -> Sweep:
    """What a campaign's `sweep` says.

    Raises:
        ConfigurationError: with every problem, each below `/sweep`.
    """
    reader = _Reader()
    axes = [
        reader.axis((path,), [(value,) for value in values], (path,))
        for path, values in sweep.items()
        if path not in RESERVED
    ]
    axes += [axis for index, group in enumerate(sweep.get(ZIP, ())) if (axis := reader.group(index, group)) is not None]
    rows = {name: tuple(reader.rows(name, sweep.get(name, ()))) for name in (INCLUDE, EXCLUDE)}
    reader.refuse_overlaps(axes)
    if reader.problems:
        raise ConfigurationError(sentence(reader.problems[0]), tuple(reader.problems))
    return Sweep(tuple(axes), rows[INCLUDE], rows[EXCLUDE])


def overlaps(one: str, other: str) -> bool:
    """Whether setting one path changes what is at the other."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


class _Reader:
    """Reads, and collects what is wrong."""

    def __init__(self) -> None:
        self.problems: list[FieldProblem] = []

    def axis(self, paths: tuple[str, ...], rows: Sequence[tuple[JsonValue, ...]], place: tuple[str | int, ...]) -> Axis:
        if not rows:
            self._tell(place, f"sweep.{paths[0]} has no values; give at least one or remove it")
        for path in paths:
            self._check_path(path, place)
        return Axis(paths, tuple(rows), _pointer(place))

    def group(self, index: int, group: JsonValue) -> Axis | None:
        place: tuple[str | int, ...] = (ZIP, index)
        if not isinstance(group, dict) or not group or not all(isinstance(values, list) for values in group.values()):
            self._tell(
                place,
                "a zip group maps paths to lists of equal length, such as {output.max_tokens: [8, 16], "
                "window.min_duration_s: [5, 10]}; write it so",
            )
            return None
        columns = {path: values for path, values in group.items() if isinstance(values, list)}
        lengths = {path: len(values) for path, values in columns.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{path} has {length}" for path, length in lengths.items())
            self._tell(place, f"the lists of a zip group are of equal length, but {shown}; make them equal")
            return None
        return self.axis(tuple(columns), list(zip(*columns.values(), strict=True)), place)

    def rows(self, name: str, given: Sequence[JsonValue]) -> Iterator[Row]:
        if len(given) > MAX_ROWS:
            self._tell((name,), f"{name} has {len(given)} entries; the limit is {MAX_ROWS}, so sweep more or list less")
            return
        for index, row in enumerate(given):
            if isinstance(row, dict) and row:
                for path in row:
                    self._check_path(path, (name, index))
                yield row
            else:
                self._tell(
                    (name, index),
                    f"an entry of {name} maps paths to values, such as {{pytorch.batch_size: 8}}; write it so",
                )

    def refuse_overlaps(self, axes: Sequence[Axis]) -> None:
        if (count := sum(len(axis.paths) for axis in axes)) > MAX_PATHS:
            self._tell((), f"the sweep varies {count} paths; the limit is {MAX_PATHS}, so put what is fixed above it")
            return
        seen: list[str] = []
        for axis in axes:
            for path in axis.paths:
                clash = next((other for other in seen if overlaps(path, other)), None)
                if clash is not None:
                    self._tell_at(axis.pointer, f"{path} and {clash} are swept, and one sets the other; keep one")
                seen.append(path)

    def _check_path(self, path: str, place: tuple[str | int, ...]) -> None:
        if not all(path.split(".")):
            self._tell(place, f"{path!r} is no path; write keys with dots between them, such as pytorch.batch_size")
        elif path not in key_paths(ExperimentConfig):
            self._tell(place, unknown_path_message(path, key_paths(ExperimentConfig)))

    def _tell(self, place: tuple[str | int, ...], message: str) -> None:
        self._tell_at(_pointer(place), message)

    def _tell_at(self, place: str, message: str) -> None:
        self.problems.append(FieldProblem(pointer=place, message=message))


def _pointer(place: tuple[str | int, ...]) -> str:
    return pointer(("sweep", *place))
