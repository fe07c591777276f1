"""The devices of a run: any, some of a kind, or named ones."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import StringConstraints, model_validator

from lem_domain.config.model_base import ConfigModel, key

MAX_DEVICES = 64

DeviceUuid = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,100}$")]


class DevicesConfig(ConfigModel):
    """The devices that are leased exclusively for a run."""

    count: int = key(
        1,
        "Number of leased accelerators (1 is the CPU of a machine without any); with `uuids` their number.",
        ge=1,
        le=MAX_DEVICES,
        unit="devices",
    )
    uuids: tuple[DeviceUuid, ...] = key(
        (),
        "Exactly these devices, in this order; `lemctl workers` lists them. The run waits for them.",
        max_length=MAX_DEVICES,
    )
    kind: str | None = key(
        None,
        "Only devices whose name matches this pattern (`*` any text, `?` any character, case-insensitive), "
        "such as `*H100*`; or `gpu`, `cpu`, `simulated`.",
        min_length=1,
        max_length=200,
        pattern=r"^[^\[\]]+$",
    )

    @model_validator(mode="before")
    @classmethod
    def _count_of_uuids(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "count" not in value and isinstance(value.get("uuids"), list | tuple):
            return {**value, "count": len(value["uuids"]) or 1}
        return value

    @model_validator(mode="after")
    def _uuids_are_counted(self) -> Self:
        if self.uuids and self.count != len(self.uuids):
            raise ValueError(f"count is {self.count} and uuids names {len(self.uuids)} devices; remove count")
        if len(set(self.uuids)) != len(self.uuids):
            raise ValueError("uuids names a device twice; name each once")
        return self

    @property
    def like_pattern(self) -> str | None:
        """`kind` as a pattern of SQL's LIKE."""
        if self.kind is None:
            return None
        escaped = self.kind.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
        return escaped.replace("*", "%").replace("?", "_")

    @property
    def leases_gpus(self) -> bool:
        """Whether GPUs are sure to be leased: several devices are GPUs, and so is one that is named as such."""
        named = self.kind == "gpu" or any(uuid.startswith(("GPU-", "MIG-")) for uuid in self.uuids)
        return self.count > 1 or named

    def fit(self, devices: Sequence[Mapping[str, str]]) -> bool:
        """Whether a worker with these devices (`uuid`, `name`, `kind`) has enough that match."""
        fitting = [device for device in devices if self._fits(device)]
        return len(fitting) >= self.count

    def describe(self) -> str:
        """`2 devices of kind 'gpu'`."""
        named = f"the device{'s' if len(self.uuids) > 1 else ''} {', '.join(self.uuids)}"
        counted = named if self.uuids else f"{self.count} device{'s' if self.count > 1 else ''}"
        return counted if self.kind is None else f"{counted} of kind {self.kind!r}"

    def _fits(self, device: Mapping[str, str]) -> bool:
        if self.uuids and device["uuid"] not in self.uuids:
            return False
        if self.kind is None:
            return True
        pattern = self.kind.lower()
        return any(fnmatch.fnmatchcase(device[key].lower(), pattern) for key in ("name", "kind"))
