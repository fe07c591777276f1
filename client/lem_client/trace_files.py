"""Traces of arrivals that a campaign names as files: read, checked, and replaced by their digests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic.types import JsonValue

from lem_client.documents import read_text
from lem_client.errors import FileError
from lem_domain.arrivals import TraceError, trace_lines
from lem_domain.config.campaign import CampaignSpec
from lem_domain.prompt_sets import prompts_digest
from lem_domain.wire.datasets import MAX_DATASET_BYTES


class TraceFiles:
    """Each file once; `lines` holds those that were read, by name."""

    def __init__(self, folder: Path, where: Callable[[str], str]) -> None:
        self.lines: dict[str, tuple[str, ...]] = {}
        self._folder = folder
        self._where = where

    def replace_in(self, spec: CampaignSpec) -> CampaignSpec:
        """The specification with `traffic.trace` in place of `traffic.trace_file`, in the base and along the sweep.

        Raises:
            FileError: a file can't be read or holds no trace.
        """
        base = dict(spec.experiment)
        if "traffic" in base:
            base["traffic"] = self._resolved(base["traffic"])
        sweep: dict[str, list[JsonValue]] = {}
        for path, values in spec.sweep.items():
            if path == "traffic.trace_file":
                sweep["traffic.trace"] = [self._digest(name) if isinstance(name, str) else name for name in values]
            elif path == "traffic":
                sweep[path] = [self._resolved(value) for value in values]
            else:
                sweep[path] = values
        return spec.model_copy(update={"experiment": base, "sweep": sweep})

    def _resolved(self, traffic: JsonValue) -> JsonValue:
        name = traffic.get("trace_file") if isinstance(traffic, dict) else None
        if not isinstance(traffic, dict) or not isinstance(name, str):
            return traffic
        return {**{key: value for key, value in traffic.items() if key != "trace_file"}, "trace": self._digest(name)}

    def _digest(self, name: str) -> str:
        if name not in self.lines:
            place = f"{self._where('/traffic/trace_file')}: traffic.trace_file"
            path = self._folder / name
            try:
                self.lines[name] = trace_lines(read_text(path, MAX_DATASET_BYTES, "a trace of arrivals"))
            except TraceError as error:
                raise FileError((f"{place}: {path}: {error}",)) from None
            except FileError as error:
                raise FileError((f"{place}: {error}",)) from None
        return prompts_digest(self.lines[name])
