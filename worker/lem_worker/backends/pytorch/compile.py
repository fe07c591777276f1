"""torch.compile of a model's forward pass, and the evidence that compiled code runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic.types import JsonValue
from torch._dynamo.utils import counters
from torch._inductor.exc import InductorError

from lem_domain.backends.pytorch import PyTorchConfig, TorchCompileConfig
from lem_worker.process.failures import OptionRefused

_MODES = {
    (False, False): "default",
    (False, True): "reduce-overhead",
    (True, True): "max-autotune",
    (True, False): "max-autotune-no-cudagraphs",
}
"""Inductor's (max_autotune, triton.cudagraphs) in each mode, as torch._inductor.list_mode_options lists them."""

_MOST_FIXED = 8
"""Torch's default limit of graphs per frame; a higher one would compile every step of a decode."""
_MOST_DYNAMIC = 64
"""The limit with dynamic sizes: one row, no padding and a first step need separate graphs, 12 in all for Llama."""


class Compiled:
    """A forward pass that compiles at its first call, and again for shapes that need it.

    The counts are dynamo's, of the whole process, which has one model.
    """

    def __init__(self, forward: Callable[..., Any], wanted: TorchCompileConfig) -> None:
        torch._dynamo.reset()
        counters.clear()
        given = wanted.model_dump(exclude={"enabled"}, exclude_none=True)
        self.dynamic = wanted.dynamic is not False
        """Whether compiled code may have dynamic sizes."""
        torch._dynamo.config.recompile_limit = _MOST_DYNAMIC if self.dynamic else _MOST_FIXED
        self._compiled: Any = torch.compile(forward, **given)

    def __call__(self, **arguments: Any) -> Any:
        """Run the forward pass."""
        return self._compiled(**arguments)

    @property
    def graphs(self) -> int:
        """Number of graphs that were compiled so far."""
        return int(counters["stats"]["unique_graphs"])

    @property
    def gave_up(self) -> bool:
        """Whether torch has reached the limit of a frame and runs its new shapes uncompiled."""
        return counters["frames"]["total"] > counters["frames"]["ok"]

    def in_force(self) -> dict[str, JsonValue]:
        """Each key of `pytorch.torch_compile` as the compiled code shows it; None where it shows nothing."""
        compiled = self.graphs > 0
        return {
            "enabled": compiled,
            "mode": self._mode(),
            "backend": self._backend() if compiled else None,
            "fullgraph": not counters["graph_break"] if compiled else None,
            "dynamic": getattr(self._context(), "_dynamic", None),
        }

    def facts(self) -> dict[str, JsonValue]:
        """Counts for the run's summary."""
        return {
            "compiled_graphs": self.graphs,
            "graph_breaks": sum(counters["graph_break"].values()),
            "runs_uncompiled": self.gave_up,
        }

    def _mode(self) -> str | None:
        config = self._compiled.get_compiler_config()
        return None if config is None else _MODES[bool(config["max_autotune"]), bool(config["triton.cudagraphs"])]

    def _backend(self) -> str:
        """The backend, by the counters of the compilers: inductor runs after AOTAutograd, and that after dynamo."""
        if counters["inductor"]:
            return "inductor"
        return "aot_eager" if counters["aot_autograd"] else "eager"

    def _context(self) -> object:
        """The settings object in the closure of the compiled function; torch offers no other access (2.13)."""
        function = self._compiled
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
        return cells["self"].cell_contents if "self" in cells else None


@contextmanager
def naming_the_option(settings: PyTorchConfig) -> Iterator[None]:
    """Convert an error of the compiler, which is pages of C++, into one that names the option that needs it.

    Raises:
        OptionRefused: in place of the compiler's error.
    """
    try:
        yield
    except InductorError as error:
        # transformers compiles flex_attention regardless of pytorch.torch_compile.
        flex = settings.attn_implementation == "flex_attention"
        option = "pytorch.attn_implementation flex_attention" if flex else "pytorch.torch_compile"
        remedy = (
            "use sdpa, or set pytorch.batch_size to 1: on the CPU it fails for padded batches"
            if flex
            else "set another torch_compile.backend, or turn it off"
        )
        first = str(error).splitlines()[0]
        raise OptionRefused(
            f"torch {torch.__version__} can't compile the code for {option} here ({first}); {remedy}."
        ) from error
