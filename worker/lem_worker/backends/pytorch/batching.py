"""Divides waiting requests into batches and lists the shapes of those; pure, without the engine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lem_domain.backends.pytorch import PyTorchConfig
from lem_worker.rank.prompts import PromptRefused, Request, batches_of, repeated

MOST_SHAPES = 256
"""The most shapes that are compiled before a window of open or closed traffic; of more, an even selection."""


class Shape(NamedTuple):
    """The properties of a batch that a compiling engine may specialise on."""

    rows: int
    longest: int
    padded: bool

    @classmethod
    def of(cls, batch: Sequence[Request]) -> Shape:
        """The shape of a batch."""
        lengths = [_length(request) for request in batch]
        return cls(len(batch), max(lengths), min(lengths) < max(lengths))


def batches(
    requests: Sequence[Request], settings: PyTorchConfig, *, max_new_tokens: int
) -> Iterator[Sequence[Request]]:
    """Divide the requests as `pytorch.batching` asks; each row has room for `max_new_tokens` more.

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
    return batches_of(requests, settings.batch_size)


def shapes(
    requests: Sequence[Request], settings: PyTorchConfig, *, max_new_tokens: int, waiting: int | None
) -> list[Sequence[Request]]:
    """One batch of each shape that a window can have.

    Under offline traffic (`waiting` is None) those are the shapes of the batches. Under open and closed traffic any up
    to `waiting` requests may form a batch; the largest shape comes first then, and the smallest second.
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
            # Renumbered, because the same request may wait in several repetitions.
            found[shape] = repeated(batch, len(batch))
    ascending = sorted(found)
    between = ascending[1:-1]
    step = max(1, -(-len(between) // MOST_SHAPES))
    return [found[shape] for shape in dict.fromkeys([ascending[-1], ascending[0], *between[::step]])]


def _in_turn(
    requests: Sequence[Request], settings: PyTorchConfig, max_new_tokens: int, waiting: int
) -> Iterator[Sequence[Request]]:
    """Yield every batch of consecutive requests, also across repetitions."""
    most = settings.batch_size if settings.batching == "static" else settings.max_tokens_per_batch or 1
    for begin in range(len(requests)):
        row = list(itertools.islice(itertools.cycle([*requests[begin:], *requests[:begin]]), min(most, waiting)))
        full = next(batches(row, settings, max_new_tokens=max_new_tokens))
        for rows in range(1, len(full) + 1):
            yield full[:rows]


def _of_any_lengths(requests: Sequence[Request], most: int) -> Iterator[Sequence[Request]]:
    """Yield batches of every number of rows and every length, with and without padding."""
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
        size = _length(request) + max_new_tokens
        if size > limit:
            raise PromptRefused(
                f"prompt {request.prompt_index} has {_length(request)} tokens and output.max_tokens is "
                f"{max_new_tokens}, together above pytorch.max_tokens_per_batch {limit}; raise it."
            )
        longest = max(longest, size)
        if batch and ((len(batch) + 1) * longest > limit or len(batch) == rows):
            yield batch
            batch, longest = [], size
        batch.append(request)
    if batch:
        yield batch


def _length(request: Request) -> int:
    return len(request.token_ids)
