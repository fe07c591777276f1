"""The most memory that this process had resident since a moment, by the kernel's own high-water mark."""

from __future__ import annotations

from pathlib import Path

_PROCESS = Path("/proc/self")
_FORGET_PEAK = "5"
"""proc(5): resets the peak of the resident set to what is resident now; a process may do so to itself (Linux 4.0)."""


class PeakMemory:
    """Counts from the moment in which it is made."""

    def __init__(self, process: Path = _PROCESS) -> None:
        self._process = process
        self.reason: str | None = None
        """Why there is no figure."""
        try:
            (process / "clear_refs").write_text(_FORGET_PEAK)
        except OSError as error:
            self.reason = f"the system does not let a process begin its peak of memory anew ({error.strerror})"

    def read(self) -> int | None:
        """Bytes; None where there is a reason."""
        if self.reason is not None:
            return None
        for line in (self._process / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return int(value.split()[0]) * 1024
        self.reason = "the system does not tell a process's peak of memory"
        return None
