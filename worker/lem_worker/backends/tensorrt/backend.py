"""The TensorRT-LLM backend: continuous batching through the LLM API of TensorRT-LLM 1.2.

It has not run on the real engine yet; a contract test compares it with the API's published signatures (see
docs/backends.md). The engine is imported in `load`, not before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic.types import JsonValue

from lem_domain.backends.tensorrt import TensorrtConfig
from lem_domain.wire.runs import EffectiveConfig
from lem_worker.backends.protocol import loaded
from lem_worker.backends.tensorrt import devices, engine, options, readback
from lem_worker.backends.tensorrt.engine import TensorrtEngine
from lem_worker.backends.tensorrt.serving import EngineStatistics, Serving, median
from lem_worker.backends.tokenizer import TokenizingBackend
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import Request
from lem_worker.rank.recorder import Recorder
from lem_worker.rank.request_feed import RequestFeed

if TYPE_CHECKING:
    from lem_worker.backends.tensorrt.tokens import Tokens

_SIXTEEN_BIT_ARITHMETIC = frozenset({"W8A16", "W4A16", "W4A16_AWQ"})
"""Algorithms that quantise weights and multiply in the model's own number format."""


class TensorrtBackend(TokenizingBackend):
    """One engine, which distributes the model over the leased devices."""

    def __init__(self) -> None:
        self._live: TensorrtEngine | None = None
        self._described: Tokens | None = None
        self._sampling_class: Callable[..., Any] | None = None
        self._runner = asyncio.Runner()
        self._statistics = EngineStatistics()
        self._served = 0
        """Number of calls of `serve`."""

    def load(self, job: RankJob) -> None:
        """Load the engine, which is compiled first with `tensorrt.build_engine`.

        Raises:
            BackendUnavailable: TensorRT-LLM is not installed, or the leased devices can't run it.
            OptionRefused: the engine rejects an option.
        """
        self._job = job
        self._sampling_class = engine.package().SamplingParams
        gpus = devices.require_gpus(job.devices)
        from lem_worker.backends.tensorrt.tokens import Tokens  # noqa: PLC0415 - needs transformers

        self._described = Tokens(job)
        self._live = engine.load(job, gpus)

    def in_flight(self) -> int:
        """The most requests of one step."""
        live = loaded(self._live)
        if live.built is not None:
            return int(live.built.described["build_config"]["max_batch_size"])
        return int(live.llm.args.max_batch_size)

    def effective_config(self, sample: Sequence[Request]) -> EffectiveConfig:
        """Read back the live engine's arguments and the sampling parameters of the first request."""
        live = loaded(self._live)
        return EffectiveConfig(
            engine=f"TensorRT-LLM {live.version}",
            parameters=readback.parameters(self._config, live, self._sampling(sample[0])),
        )

    def serve(self, feed: RequestFeed, recorder: Recorder) -> None:
        """Stream all arrived requests at once; the engine queues those above its capacity."""
        live = loaded(self._live)
        self._statistics = EngineStatistics()
        self._served += 1
        reuses = bool(live.llm.args.kv_cache_config.enable_block_reuse)
        serving = Serving(
            live.llm,
            feed,
            recorder,
            sampling=self._sampling,
            scope=f"{recorder.phase.value} {self._served}" if reuses else None,
            statistics=self._statistics,
        )
        self._runner.run(serving.run())

    def facts(self) -> dict[str, JsonValue]:
        """Sizes of the model, counts of speculation, the delay of first chunks, and the origin of a built engine."""
        live, settings = loaded(self._live), self._config.section(TensorrtConfig)
        model = self._tokens.model_facts()
        quantized = self._tokens.is_quantized
        if settings.quantization is not None:
            quantized = settings.quantization.algorithm not in _SIXTEEN_BIT_ARITHMETIC
        if quantized:
            model["dtype"] = None
        elif self._config.precision != "auto":
            model["dtype"] = self._config.precision
        found: dict[str, JsonValue] = {
            "model": model,
            "peak_device_memory_bytes": None,
            "peak_kv_cache_usage": None,
            "unknown": {
                "peak_device_memory_bytes": "TensorRT-LLM's processes do not report what they allocate",
                "peak_kv_cache_usage": "TensorRT-LLM reports it in its step statistics, which are not read yet",
            },
        }
        if settings.speculative is not None:
            found["speculation"] = {
                "drafted_tokens": self._statistics.drafted_tokens,
                "accepted_tokens": self._statistics.accepted_tokens,
            }
        found["first_token_delivery_ns"] = median(self._statistics.first_token_lags_ns)
        if live.built is not None:
            found["engine_from_cache"] = live.built.from_cache
        return found

    def unload(self) -> None:
        """Shut the engine and its processes down."""
        if self._live is not None:
            self._live.llm.shutdown()
        self._live = self._described = None
        self._runner.close()

    def _sampling(self, request: Request) -> Any:
        config, tokens = self._config, self._tokens
        common = options.of_sampling(
            config.decoding, config.output, end_ids=tokens.end_ids, padding_id=tokens.padding_id
        )
        if request.max_tokens is not None:
            common = {**common, "max_tokens": request.max_tokens}
            common.pop("min_tokens", None)
        seed = {"seed": request.seed} if config.decoding.temperature > 0 else {}
        return loaded(self._sampling_class)(**common, **seed)

    @property
    def _tokens(self) -> Tokens:
        return loaded(self._described)
