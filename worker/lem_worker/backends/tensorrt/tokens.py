"""The checkpoint's tokenizer and description, for an engine that takes and returns token ids only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.types import JsonValue
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from lem_domain.backends.tensorrt import TensorrtConfig
from lem_worker.backends.tokenizer import ModelTokens
from lem_worker.process.protocol import RankJob


class Tokens(ModelTokens):
    """The tokenizer of the job's model, and what its description says about the model."""

    def __init__(self, job: RankJob) -> None:
        source = {} if job.config.model.revision is None else {"revision": job.config.model.revision}
        self._folder = Path(job.model_path)
        self._config: Any = AutoConfig.from_pretrained(job.model_path, **source)
        contexts = {
            "the model's context": getattr(self._config.get_text_config(), "max_position_embeddings", None),
            "tensorrt.max_seq_len": job.config.section(TensorrtConfig).max_seq_len,
        }
        tokenizer = AutoTokenizer.from_pretrained(job.model_path, **source)
        super().__init__(tokenizer, contexts, _generation_config(job.model_path, source))

    @property
    def vocabulary(self) -> int:
        """Number of tokens of the model."""
        return int(self._config.get_text_config().vocab_size)

    @property
    def is_quantized(self) -> bool:
        """Whether the checkpoint's weights are quantised."""
        described = getattr(self._config, "quantization_config", None) is not None
        return described or (self._folder / "hf_quant_config.json").exists()  # the format of TensorRT's own tools

    def model_facts(self) -> dict[str, JsonValue]:
        """Sizes for the estimate of the model's work, from its description alone; loads no weights."""
        # Imported here, because the rank needs torch only for this; the engine loads it in its own processes.
        import torch  # noqa: PLC0415
        from transformers import AutoModelForCausalLM  # noqa: PLC0415

        from lem_worker.backends.model_facts import model_facts  # noqa: PLC0415

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self._config)  # type: ignore[no-untyped-call]
        return model_facts(model)


def _generation_config(path: str, source: dict[str, str]) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(path, **source)  # type: ignore[arg-type]
    except OSError:  # not every checkpoint has one
        return None
