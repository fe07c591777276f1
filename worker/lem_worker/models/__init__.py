"""Models by name: built-in ones in the cache, folders, and hub ids."""

from lem_worker.models.cache import default_cache_dir
from lem_worker.models.resolve import ModelNotFound, ModelSource, resolve_adapter, resolve_model

__all__ = ["ModelNotFound", "ModelSource", "default_cache_dir", "resolve_adapter", "resolve_model"]
