"""Creates the backend that an experiment names."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from lem_domain.backends.registry import backend_spec
from lem_worker.backends.protocol import InferenceBackend
from lem_worker.process.failures import BackendUnavailable


def create_backend(name: str) -> InferenceBackend:
    """A backend that is not loaded yet; imports its module and no other backend's.

    Raises:
        BackendUnavailable: a package that the module imports is not installed.
    """
    module, _, class_name = backend_spec(name).implementation.partition(":")
    try:
        factory = getattr(import_module(module), class_name)
    except ImportError as error:
        raise missing_package(name, error) from error
    return cast("InferenceBackend", factory())


def missing_package(backend: str, error: ImportError) -> BackendUnavailable:
    """The error for a package that a backend needs and that can't be imported."""
    return BackendUnavailable(
        f"the {backend} backend needs the package {error.name or 'named in: ' + str(error)}; "
        f"install llm-energy-measurement[{backend_spec(backend).extra}] in this worker's environment."
    )
