"""How requests that wait become batches, and which shapes those can have; pure, without the engine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lem_domain.backends.pytorch import PyTorchConfig
from lem_worker.rank.prompts import PromptRefused, Request, repeated
from lem_worker.rank.prompts import batches as in_order

MOST_SHAPES = 256
"""So many shapes are met before a window to which requests arrive by themselves; of more, these are spread evenly."""


class Shape(NamedTuple):
    """What an engine that compiles may tell batches by."""

    rows: int
    longest: int
    padded: bool

    @classmethod
    def of(cls, batch: Sequence[Request]) -> Shape:
        """That of a batch."""
        lengths = [_length(request) for request in batch]
        return cls(len(batch), max(lengths), min(lengths) < max(lengths))


def batches(
    requests: Sequence[Request], settings: PyTorchConfig, *, max_new_tokens: int
) -> Iterator[Sequence[Request]]:
    """Every request once, in batches as `pytorch.batching` says; a row has room for `max_new_tokens` more.

    Raises:
        PromptRefused: a prompt alone is larger than `max_tokens_per_batch`.
    """
    limit = settings.max_tokens_per_batch
    if settings.batching == "dynamic" and limit is not None:
        rows = settings.batch_size if settings.batch_size > 1 else None
        return _within(requests, limit, rows, max_new_tokens)
    if settings.batching == "length_sorted":
        # The sort is stable: requests of one length keep their order, so the batches are the same in every run.
        requests = sorted(requests, key=_length, reverse=True)
    return in_order(requests, settings.batch_size)


def shapes(
    requests: Sequence[Request], settings: PyTorchConfig, *, max_new_tokens: int, waiting: int | None
) -> list[Sequence[Request]]:
    """One batch of each shape that a window can have.

    Where all requests are there from the beginning (`waiting` None), those are the shapes of their batches. Where they
    arrive by themselves, a batch is made of what waits at that moment, which may be any up to `waiting` of them: the
    batch with the most rows comes first then, and the one with the fewest second.
    """
    found: dict[Shape, Sequence[Request]] = {}
    if waiting is None:
        for batch in batches(requests, settings, max_new_tokens=max_new_tokens):
            found.setdefault(Shape.of(batch), batch)
        return list(found.values())
    lengths_decide = settings.batching == "length_sorted"
    for batch in (
        _of_any_lengths(requests, min(settings.batch_size, waiting))
        if lengths_decide
        else _in_turn(requests, settings, max_new_tokens, waiting)
    ):
        shape = Shape.of(batch)
        if shape not in found:
            # The same request may wait in several repetitions.
            found[shape] = repeated(batch, len(batch))
    ascending = sorted(found)
    between = ascending[1:-1]
    step = max(1, -(-len(between) // MOST_SHAPES))
    return [found[shape] for shape in dict.fromkeys([ascending[-1], ascending[0], *between[::step]])]


def _in_turn(
    requests: Sequence[Request], settings: PyTorchConfig, max_new_tokens: int, waiting: int
) -> Iterator[Sequence[Request]]:
    """Every batch of requests that arrived one after the other, of one repetition or of several."""
    most = settings.batch_size if settings.batching == "static" else settings.max_tokens_per_batch or 1
    for begin in range(len(requests)):
        row = list(itertools.islice(itertools.cycle([*requests[begin:], *requests[:begin]]), min(most, waiting)))
        fullest = next(batches(row, settings, max_new_tokens=max_new_tokens))
        for rows in range(1, len(fullest) + 1):
            yield fullest[:rows]


def _of_any_lengths(requests: Sequence[Request], most: int) -> Iterator[Sequence[Request]]:
    """Batches of every number of rows and every length, with padding and without."""
    of_length = {_length(request): request for request in requests}
    shortest = of_length[min(of_length)]
    for rows in range(1, most + 1):
        for request in of_length.values():
            yield [request] * rows
            if rows > 1:
                yield [*[request] * (rows - 1), shortest]


def _within(requests: Sequence[Request], limit: int, rows: int | None, max_new_tokens: int) -> Iterator[list[Request]]:
    batch: list[Request] = []
    longest = 0
    for request in requests:
        places = _length(request) + max_new_tokens
        if places > limit:
            raise PromptRefused(
                f"prompt {request.prompt_index} has {_length(request)} tokens and output.max_tokens is "
                f"{max_new_tokens}, together above pytorch.max_tokens_per_batch {limit}; raise it."
            )
        longest = max(longest, places)
        if batch and ((len(batch) + 1) * longest > limit or len(batch) == rows):
            yield batch
            batch, longest = [], places
        batch.append(request)
    if batch:
        yield batch


def _length(request: Request) -> int:
    return len(request.token_ids)
