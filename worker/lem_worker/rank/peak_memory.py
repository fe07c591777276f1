"""Peak resident memory of this process, by the kernel's high-water mark."""

from __future__ import annotations

from pathlib import Path

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"
"""proc(5), clear_refs: resets the peak of the resident set to the current size (since Linux 4.0)."""


class PeakMemory:
    """The peak since this object was created."""

    def __init__(self, process: Path = _PROCESS) -> None:
        self._process = process
        self.reason: str | None = None
        """Why the peak is unknown; None where it is known."""
        try:
            (process / "clear_refs").write_text(_RESET_PEAK)
        except OSError as error:
            self.reason = f"the kernel refuses to reset the peak of resident memory ({error.strerror})"

    def read(self) -> int | None:
        """The peak in bytes; None where `reason` is set."""
        if self.reason is not None:
            return None
        for line in (self._process / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return int(value.split()[0]) * 1024
        self.reason = "/proc/self/status has no peak of resident memory (VmHWM)"
        return None
