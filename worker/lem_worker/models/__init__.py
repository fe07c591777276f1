"""Where a model is: a built-in one made once into the cache, a folder, or a hub id handed on."""

from lem_worker.models.cache import default_cache_dir
from lem_worker.models.missing import ModelNotFound
from lem_worker.models.resolve import ModelSource, resolve_adapter, resolve_model

__all__ = ["ModelNotFound", "ModelSource", "default_cache_dir", "resolve_adapter", "resolve_model"]
