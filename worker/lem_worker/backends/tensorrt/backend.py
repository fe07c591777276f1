"""The TensorRT-LLM backend: continuous batching through the LLM API of TensorRT-LLM 1.2.

It has not run on the real engine yet; a contract test holds it to the API's published signatures (see
docs/backends.md). Nothing of the engine is imported before `load`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic.types import JsonValue

from lem_domain.backends.tensorrt import TensorrtConfig
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.wire.runs import EffectiveConfig
from lem_worker.backends.protocol import loaded
from lem_worker.backends.tensorrt import devices as tensorrt_devices
from lem_worker.backends.tensorrt import engine as tensorrt_engine
from lem_worker.backends.tensorrt import options as tensorrt_arguments
from lem_worker.backends.tensorrt import readback as tensorrt_readback
from lem_worker.backends.tensorrt.engine import LiveEngine
from lem_worker.backends.tensorrt.serving import Serving, Tally, median
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import PreparedPrompt, Request, fit
from lem_worker.rank.recorder import Recorder
from lem_worker.rank.request_feed import RequestFeed
from lem_worker.rank.synthetic_prompts import synthetic_prompts

if TYPE_CHECKING:
    from lem_worker.backends.tensorrt.tokens import Tokens

_SIXTEEN_BIT_ARITHMETIC = frozenset({"W8A16", "W4A16", "W4A16_AWQ"})
"""Quantised weights that are multiplied in the model's own number format."""


class TensorrtBackend:
    """One engine, which spreads over the leased devices by itself."""

    def __init__(self) -> None:
        self._live: LiveEngine | None = None
        self._tokens: Tokens | None = None
        self._job: RankJob | None = None
        self._sampling_class: Callable[..., Any] | None = None
        self._runner = asyncio.Runner()
        self._tally = Tally()
        self._served = 0
        """How many phases, or rounds of warm-up."""

    def load(self, job: RankJob) -> None:
        """Bring the engine up; compile it before where the configuration wants that.

        Raises:
            BackendUnavailable: TensorRT-LLM is not here, or the leased devices can't run it.
            OptionRefused: the engine does not take an option.
        """
        self._job = job
        self._sampling_class = tensorrt_engine.package().SamplingParams
        gpus = tensorrt_devices.require_gpus(job.devices)
        from lem_worker.backends.tensorrt.tokens import Tokens  # noqa: PLC0415 - needs transformers

        self._tokens = Tokens(job)
        self._live = tensorrt_engine.load(job, gpus)

    def prepare(self, prompts: Sequence[tuple[int, str]]) -> list[PreparedPrompt]:
        """Tokenise, truncate, and see that prompt and answer fit into the model's context and `max_seq_len`."""
        tokens, config = loaded(self._tokens), self._config()
        return self._within_context(
            fit(index, tokens.ids(text, chat_template=config.prompts.chat_template), config.input)
            for index, text in prompts
        )

    def synthesise(self, lengths: Sequence[tuple[int, int]], seed: int) -> list[PreparedPrompt]:
        """Ids of the tokenizer that stand for text, within the same limits."""
        vocabulary = loaded(self._tokens).ordinary_ids()
        return self._within_context(synthetic_prompts(lengths, vocabulary, seed=seed, limits=self._config().input))

    def _within_context(self, prompts: Iterable[PreparedPrompt]) -> list[PreparedPrompt]:
        tokens, config = loaded(self._tokens), self._config()
        longest = config.section(TensorrtConfig).max_seq_len
        prepared = list(prompts)
        for prompt in prepared:
            tokens.check_context(prompt, config.output.max_tokens, longest=longest)
        return prepared

    def in_flight(self) -> int:
        """The most requests of a step."""
        live = loaded(self._live)
        if live.built is not None:
            return int(live.built.described["build_config"]["max_batch_size"])
        return int(live.llm.args.max_batch_size)

    def effective_config(self, sample: Sequence[Request]) -> EffectiveConfig:
        """Read back from the live engine's arguments and from the sampling that `sample` will be sent with."""
        live = loaded(self._live)
        return EffectiveConfig(
            engine=f"TensorRT-LLM {live.version}",
            parameters=tensorrt_readback.parameters(self._config(), live, self._sampling(sample[0])),
        )

    def serve(self, feed: RequestFeed, recorder: Recorder) -> None:
        """Stream every request, as many at once as have arrived; the engine queues what it has no room for."""
        live = loaded(self._live)
        self._tally = Tally()
        self._served += 1
        reuses = bool(live.llm.args.kv_cache_config.enable_block_reuse)
        serving = Serving(
            live.llm,
            feed,
            recorder,
            sampling=self._sampling,
            scope=f"{recorder.phase.value} {self._served}" if reuses else None,
            tally=self._tally,
        )
        self._runner.run(serving.run())

    def facts(self) -> dict[str, JsonValue]:
        """Sizes of the model; what speculation did, how late chunks were, and whether the engine was there already."""
        live, settings = loaded(self._live), self._config().section(TensorrtConfig)
        model = loaded(self._tokens).model_facts()
        quantised = loaded(self._tokens).quantised
        if settings.quantization is not None:
            quantised = settings.quantization.algorithm not in _SIXTEEN_BIT_ARITHMETIC
        if quantised:
            model["dtype"] = None
        elif self._config().precision != "auto":
            model["dtype"] = self._config().precision
        found: dict[str, JsonValue] = {
            "model": model,
            "peak_device_memory_bytes": None,
            "peak_kv_cache_usage": None,
            "unknown": {
                "peak_device_memory_bytes": "TensorRT-LLM's processes do not tell what they allocate",
                "peak_kv_cache_usage": "TensorRT-LLM tells it in statistics of its own steps, which are not read yet",
            },
        }
        if settings.speculative is not None:
            found["speculation"] = {
                "drafted_tokens": self._tally.drafted_tokens,
                "accepted_tokens": self._tally.accepted_tokens,
            }
        found["first_token_delivery_ns"] = median(self._tally.first_token_lags_ns)
        if live.built is not None:
            found["engine_from_cache"] = live.built.from_cache
        return found

    def text(self, token_ids: Sequence[int]) -> str:
        """Without special tokens."""
        return loaded(self._tokens).text(token_ids)

    def unload(self) -> None:
        """Shut the engine down, its processes with it."""
        if self._live is not None:
            self._live.llm.shutdown()
        self._live = self._tokens = None
        self._runner.close()

    def _sampling(self, request: Request) -> Any:
        config, tokens = self._config(), loaded(self._tokens)
        common = tensorrt_arguments.of_sampling(
            config.decoding, config.output, end_ids=tokens.end_ids, padding_id=tokens.padding_id
        )
        if request.max_tokens is not None:
            common = {**common, "max_tokens": request.max_tokens}
            common.pop("min_tokens", None)
        seed = {"seed": request.seed} if config.decoding.temperature > 0 else {}
        return loaded(self._sampling_class)(**common, **seed)

    def _config(self) -> ExperimentConfig:
        return loaded(self._job).config
