"""A wall clock that a test sets, for one process and what it starts: the real one and so many seconds more."""

from __future__ import annotations

from pathlib import Path

from fakes.compiled import compiled


class SimulatedWallClock:
    """Set by `jump`; the monotonic clock goes on as it does when somebody sets a machine's clock."""

    def __init__(self, folder: Path, state: Path) -> None:
        self._library = compiled("libwallclock.so", Path(__file__).parent, folder, ("-ldl",))
        self._state = state

    def jump(self, seconds: int) -> None:
        """Ahead of the real one by so many seconds from now on."""
        draft = self._state.with_suffix(".draft")
        draft.write_text(str(seconds))
        draft.replace(self._state)

    def environment(self) -> dict[str, str]:
        """For a process that is to have this clock."""
        return {"LD_PRELOAD": str(self._library), "LEM_FAKE_WALL_CLOCK": str(self._state)}
