"""A rank's share of the prompts, tokenised or synthesised by its backend."""

from __future__ import annotations

import random

from lem_domain.config.experiment import PromptsConfig
from lem_domain.config.prompt_sources import SyntheticPrompts
from lem_worker.backends.protocol import InferenceBackend, SyntheticBackend
from lem_worker.process.failures import OptionRefused
from lem_worker.process.prompt_selection import select_prompts
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import PreparedPrompt, share_of


def prepare_share(backend: InferenceBackend, job: RankJob) -> list[PreparedPrompt]:
    """Return the rank's prompts as token ids.

    Raises:
        PromptRefused: there are fewer prompts than ranks, or a prompt is too long.
        OptionRefused: the backend can't synthesise prompts.
    """
    wanted = job.config.prompts.synthetic
    if wanted is None:
        return backend.prepare(share_of(job.prompts, job.rank, job.world_size))
    if not isinstance(backend, SyntheticBackend):
        raise OptionRefused(
            f"the {job.config.backend.value} backend can't make synthetic prompts; give prompts.file instead."
        )
    lengths = share_of(synthetic_lengths(wanted, job.config.prompts), job.rank, job.world_size)
    return backend.synthesise(lengths, wanted.seed)


def synthetic_lengths(wanted: SyntheticPrompts, prompts: PromptsConfig) -> tuple[int, ...]:
    """Length in tokens of every prompt of the experiment, in the order of sending."""
    draw = random.Random(wanted.seed)
    lengths = [wanted.prompt_tokens + draw.randint(-wanted.spread, wanted.spread) for _ in range(wanted.count)]
    return select_prompts(lengths, prompts, int)
