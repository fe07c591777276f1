"""torch.compile of a model's forward pass, and the proof that compiled code is what runs."""

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
"""What inductor's (max_autotune, triton.cudagraphs) are in each mode; torch._inductor.list_mode_options says so too."""

_MOST_FIXED = 8
"""Graphs of one frame, torch's own default; with more, each step of a decode would be compiled."""
_MOST_DYNAMIC = 64
"""Where sizes may stay open: one row, no padding and a first step each need some graphs of their own, 12 in all for
Llama."""


class Compiled:
    """A forward pass that is compiled when it is called first, and again for shapes that need it.

    The counts are dynamo's own and of the whole process, which has one model.
    """

    def __init__(self, forward: Callable[..., Any], wanted: TorchCompileConfig) -> None:
        torch._dynamo.reset()
        counters.clear()
        given: dict[str, Any] = {
            "mode": wanted.mode,
            "backend": wanted.backend,
            "fullgraph": wanted.fullgraph,
            "dynamic": wanted.dynamic,
        }
        given = {name: value for name, value in given.items() if value is not None}
        self.dynamic = wanted.dynamic is not False
        """Sizes may stay open in what is compiled."""
        torch._dynamo.config.recompile_limit = _MOST_DYNAMIC if self.dynamic else _MOST_FIXED
        self._compiled: Any = torch.compile(forward, **given)

    def __call__(self, **arguments: Any) -> Any:
        """Run the forward pass."""
        return self._compiled(**arguments)

    @property
    def graphs(self) -> int:
        """How many graphs were compiled so far; it no longer grows when nothing is compiled any more."""
        return int(counters["stats"]["unique_graphs"])

    @property
    def gave_up(self) -> bool:
        """Torch has met a frame that it compiles no more, and runs new shapes of it as they are."""
        return counters["frames"]["total"] > counters["frames"]["ok"]

    def in_force(self) -> dict[str, JsonValue]:
        """Each key of `pytorch.torch_compile` as it shows in what was compiled; None where it does not show."""
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
        """Told from the compilers that were at work: inductor works on what AOTAutograd traced, and that on graphs."""
        if counters["inductor"]:
            return "inductor"
        return "aot_eager" if counters["aot_autograd"] else "eager"

    def _context(self) -> object:
        """The live settings that torch keeps beside the compiled function."""
        function = self._compiled
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
        return cells["self"].cell_contents if "self" in cells else None


@contextmanager
def naming_what_asks_for_it(settings: PyTorchConfig) -> Iterator[None]:
    """Turns the compiler's complaint, pages of C++, into the option that asks for code which it can't make here.

    Raises:
        OptionRefused: instead of the compiler's error.
    """
    try:
        yield
    except InductorError as error:
        # transformers compiles flex_attention by itself, whatever pytorch.torch_compile says.
        flex = settings.attn_implementation == "flex_attention"
        option = "pytorch.attn_implementation flex_attention" if flex else "pytorch.torch_compile"
        remedy = (
            "use sdpa, or set pytorch.batch_size to 1: padded batches are what it fails for on the CPU"
            if flex
            else "name another backend of it, or turn it off"
        )
        first = str(error).splitlines()[0]
        raise OptionRefused(
            f"torch {torch.__version__} can't compile what {option} needs here ({first}); {remedy}."
        ) from error
