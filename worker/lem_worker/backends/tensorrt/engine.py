"""Loads a TensorRT-LLM engine, in its PyTorch flow or built ahead of time, through the LLM API of version 1.2."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic.types import JsonValue

from lem_domain.backends.tensorrt import SPEC, TensorrtConfig
from lem_worker.backends.installed import version_of
from lem_worker.backends.tensorrt import options
from lem_worker.backends.tensorrt.cache import EngineKey, GpuKind, engine_folder, key_of
from lem_worker.process.failures import BackendUnavailable, OptionRefused
from lem_worker.process.protocol import RankJob

PACKAGE = "tensorrt_llm"

_MODELS = {
    "build_config": "BuildConfig",
    "cuda_graph_config": "CudaGraphConfig",
    "kv_cache_config": "KvCacheConfig",
    "quant_config": "QuantConfig",
    "scheduler_config": "SchedulerConfig",
}
"""Arguments of `LLM` and the class of `tensorrt_llm.llmapi` that each takes."""
_SIGNS_OF_AN_OPTION = ("got invalid argument", "specific to TensorRT backend", "is not consistent with the engine")
"""Parts of the messages by which `LLM` rejects an argument (1.2); it has no exception class for that."""
_SIGN_OF_A_MODEL = "model format"


class BuiltEngine(NamedTuple):
    """A compiled engine: its own description (`config.json`), its cache key, and whether it came from the cache."""

    described: Mapping[str, Any]
    key: EngineKey | None
    from_cache: bool


class TensorrtEngine(NamedTuple):
    """A loaded engine; `llm` is a `tensorrt_llm.LLM`."""

    llm: Any
    version: str
    built: BuiltEngine | None


def package() -> Any:
    """Import the engine's package.

    Raises:
        BackendUnavailable: it is not installed, or can't be imported.
    """
    try:
        return importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        if error.name == PACKAGE:
            raise BackendUnavailable(f"TensorRT-LLM is not installed here; {SPEC.install_hint}.") from error
        raise _broken(error) from error
    except Exception as error:  # its libraries are loaded on import and raise other errors
        raise _broken(error) from error


def load(job: RankJob, gpus: tuple[GpuKind, ...]) -> TensorrtEngine:
    """Load the job's model, which is compiled first with `tensorrt.build_engine`.

    Raises:
        BackendUnavailable: TensorRT-LLM is not installed.
        OptionRefused: it rejects an option.
    """
    engine = package()
    settings = job.config.section(TensorrtConfig)
    version = str(engine.__version__)
    if not settings.build_engine:
        arguments = options.pytorch_flow(job.config)
        return TensorrtEngine(_made(engine.LLM, job.model_path, arguments, version), version, None)
    builder = importlib.import_module(f"{PACKAGE}._tensorrt_engine").LLM
    if settings.engine_cache_dir is None:
        llm = _built(builder, job, version)
        return TensorrtEngine(llm, version, BuiltEngine(_description(Path(llm.args.model)), None, from_cache=False))
    return _from_cache(builder, job, settings.engine_cache_dir, gpus, version, force=settings.force_rebuild)


def _from_cache(
    builder: Any, job: RankJob, cache: str, gpus: tuple[GpuKind, ...], version: str, *, force: bool
) -> TensorrtEngine:
    key = key_of(
        model=job.config.model.id,
        revision=job.config.model.revision,
        model_files=job.model_files,
        arguments=options.of_build(job.config),
        versions={"tensorrt_llm": version, "tensorrt": version_of("tensorrt"), "torch": version_of("torch")},
        gpus=gpus,
    )
    made: list[Any] = []

    def build(folder: Path) -> None:
        made.append(_built(builder, job, version))
        made[0].save(str(folder))

    folder = engine_folder(Path(cache), key, build=build, force=force)
    llm = made[0] if made else _made(builder, str(folder), options.at_run_time(job.config), version)
    return TensorrtEngine(llm, version, BuiltEngine(_description(folder), key, from_cache=not made))


def _built(builder: Any, job: RankJob, version: str) -> Any:
    arguments = {**options.of_build(job.config), **options.at_run_time(job.config)}
    return _made(builder, job.model_path, arguments, version)


def _made(constructor: Any, model: str, arguments: Mapping[str, JsonValue], version: str) -> Any:
    try:
        return constructor(model=model, **_with_models(arguments))
    except (ValueError, TypeError) as error:
        text = str(error)
        refused = isinstance(error, ValidationError | TypeError) or any(sign in text for sign in _SIGNS_OF_AN_OPTION)
        if not refused or _SIGN_OF_A_MODEL in text:
            raise
        raise OptionRefused(
            f"TensorRT-LLM {version} rejects an option ({_first_problem(error)}); change or remove it."
        ) from error


def _with_models(arguments: Mapping[str, JsonValue]) -> dict[str, Any]:
    """Convert dictionaries among the arguments into the engine's own classes."""
    api = importlib.import_module(f"{PACKAGE}.llmapi")
    made: dict[str, Any] = {}
    for name, value in arguments.items():
        if not isinstance(value, dict):
            made[name] = value
        elif name == "speculative_config":
            drafts = "NGramDecodingConfig" if "max_matching_ngram_size" in value else "DraftTargetDecodingConfig"
            made[name] = getattr(api, drafts)(**value)
        else:
            made[name] = getattr(api, _MODELS[name])(**{key: _enumerated(api, key, one) for key, one in value.items()})
    return made


def _enumerated(api: Any, name: str, value: JsonValue) -> Any:
    kinds = {
        "capacity_scheduler_policy": "CapacitySchedulerPolicy",
        "context_chunking_policy": "ContextChunkingPolicy",
        "quant_algo": "QuantAlgo",
        "kv_cache_quant_algo": "QuantAlgo",
    }
    return getattr(api, kinds[name])[value] if name in kinds else value


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        return f"{path}: {first['msg']}" if path else first["msg"]
    return f"{type(error).__name__}: {error}"


def _description(folder: Path) -> Mapping[str, Any]:
    """A built engine's description: `build_config` and `pretrained_config`."""
    described: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
    return described


def _broken(error: Exception) -> BackendUnavailable:
    return BackendUnavailable(
        f"TensorRT-LLM is installed here but can't be imported ({type(error).__name__}: {error}); {SPEC.install_hint}."
    )
