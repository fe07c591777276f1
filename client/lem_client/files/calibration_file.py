"""Reads a file of calibrations, in the form that a campaign has them: `energy`, in it `calibration`."""

from __future__ import annotations

from pathlib import Path

from lem_client.errors import FileError
from lem_client.files.yaml_reader import read_document
from lem_domain.config.documents import value_at
from lem_domain.config.validation import model_or_problems
from lem_domain.errors import ConfigurationError
from lem_domain.wire.campaigns import AggregationRequest

NONE = "none"
"""Given instead of a file's name: without any calibration."""


def read_calibration(path: Path) -> AggregationRequest:
    """Read the calibrations of a file, or an empty list for the path `none`.

    Raises:
        FileError: with every problem, each with its file and line.
    """
    if str(path) == NONE:
        return AggregationRequest(calibration=())
    document = read_document(path)
    entries = value_at(document.values, ("energy", "calibration"))
    if not isinstance(entries, list):
        raise FileError((f"{path}: there is no list energy.calibration; `lemctl calibrate -o FILE` writes one",))
    try:
        return model_or_problems(AggregationRequest, {"calibration": entries})
    except ConfigurationError as error:
        found = []
        for problem in error.field_problems:
            at = f"/energy{problem.pointer}" if problem.pointer else "/energy/calibration"
            line = document.lines.get(at) or document.lines.get(at.rpartition("/")[0], 1)
            found.append(f"{path}:{line}: {at[1:].replace('/', '.')}: {problem.message}")
        raise FileError(tuple(found)) from None
