"""The order of a campaign's runs: pure functions of the numbers of experiments and cycles and a seed.

Permutations come from SHA-256 instead of `random`, whose shuffle may change between versions of Python: the same seed
gives the same order everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

Order = Literal["interleaved", "shuffled", "grouped", "latin_square"]


class PlannedRun(NamedTuple):
    """One run: index of its experiment, cycle (from 1), position in the order (from 0)."""

    experiment: int
    cycle: int
    position: int


def order_runs(experiments: int, cycles: int, order: Order, seed: int = 0) -> tuple[PlannedRun, ...]:
    """Every experiment once per cycle, in the chosen order.

    The position of a run depends only on the arguments, and except in `grouped` not on `cycles`: a campaign with more
    cycles starts with the same runs. Positions never change; resumed and retried runs keep theirs.
    """
    pairs = _PAIRS[order](experiments, cycles, seed)
    return tuple(PlannedRun(experiment, cycle, position) for position, (experiment, cycle) in enumerate(pairs))


def permutation(count: int, *key: object) -> list[int]:
    """The numbers below `count`, shuffled; the permutation depends on the key."""
    prefix = hashlib.sha256("/".join(map(str, key)).encode())

    def digest(number: int) -> bytes:
        of_number = prefix.copy()
        of_number.update(f"/{number}".encode())
        return of_number.digest()

    return sorted(range(count), key=digest)


def _interleaved(experiments: int, cycles: int, _: int) -> Iterator[tuple[int, int]]:
    return ((experiment, cycle) for cycle in range(1, cycles + 1) for experiment in range(experiments))


def _grouped(experiments: int, cycles: int, _: int) -> Iterator[tuple[int, int]]:
    return ((experiment, cycle) for experiment in range(experiments) for cycle in range(1, cycles + 1))


def _shuffled(experiments: int, cycles: int, seed: int) -> Iterator[tuple[int, int]]:
    for cycle in range(1, cycles + 1):
        for experiment in permutation(experiments, "shuffled", seed, cycle):
            yield experiment, cycle


def _latin_square(experiments: int, cycles: int, seed: int) -> Iterator[tuple[int, int]]:
    """Rows of Latin squares as cycles: over as many cycles as experiments, each has each position once.

    The squares are those of E. J. Williams (Experimental designs balanced for the estimation of residual effects of
    treatments, 1949): with an even number of experiments each also follows each other one once per square, with an odd
    number twice per two squares, the second of which is the first in reverse. The seed permutes the letters and the
    rows of each square.
    """
    if not experiments:
        return
    letters = permutation(experiments, "latin_square", seed, "letters")
    first_row = [(column + 1) // 2 if column % 2 else -(column // 2) for column in range(experiments)]
    rows: list[int] = []
    for cycle in range(1, cycles + 1):
        square, number = divmod(cycle - 1, experiments)
        if number == 0:
            rows = permutation(experiments, "latin_square", seed, "rows", square)
        row = [letters[(letter + rows[number]) % experiments] for letter in first_row]
        backwards = experiments % 2 and square % 2
        for experiment in reversed(row) if backwards else row:
            yield experiment, cycle


_PAIRS: dict[Order, Callable[[int, int, int], Iterator[tuple[int, int]]]] = {
    "interleaved": _interleaved,
    "shuffled": _shuffled,
    "grouped": _grouped,
    "latin_square": _latin_square,
}
