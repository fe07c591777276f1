"""How requests that wait become batches; pure, without the engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lem_domain.config.pytorch import PyTorchConfig
from lem_worker.prompts import PromptRefused, Request
from lem_worker.prompts import batches as in_order


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
