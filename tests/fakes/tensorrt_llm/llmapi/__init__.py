"""The part of the fake that holds the LLM API's names."""

from .._llm import LLM
from .._models import (
    BuildConfig,
    CapacitySchedulerPolicy,
    ContextChunkingPolicy,
    CudaGraphConfig,
    DraftTargetDecodingConfig,
    KvCacheConfig,
    NGramDecodingConfig,
    QuantAlgo,
    QuantConfig,
    SchedulerConfig,
    TorchLlmArgs,
    TrtLlmArgs,
)
from .._results import CompletionOutput, RequestError, RequestOutput
from .._sampling import SamplingParams

__all__ = [
    "LLM",
    "BuildConfig",
    "CapacitySchedulerPolicy",
    "CompletionOutput",
    "ContextChunkingPolicy",
    "CudaGraphConfig",
    "DraftTargetDecodingConfig",
    "KvCacheConfig",
    "NGramDecodingConfig",
    "QuantAlgo",
    "QuantConfig",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "SchedulerConfig",
    "TorchLlmArgs",
    "TrtLlmArgs",
]
