"""The figures of a chaos run, as a table and as a verdict."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos.faults import Fault
from chaos.world import USER, Step

SHOWN = 20


@dataclass
class Report:
    """What a chaos run found."""

    seed: int
    seconds: float
    settled_in_s: float
    faults: Sequence[Fault]
    steps: Sequence[Step]
    skipped: int
    run_states: dict[str, int] = field(default_factory=dict)
    figures: dict[str, object] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """What servers and workers logged as errors; no violation, but worth a look."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found that must not be."""
        return not any(self.violations.values())

    def text(self) -> str:
        """Everything, for a terminal."""
        lines = [
            f"chaos for {self.seconds:.0f} s with seed {self.seed}; all settled {self.settled_in_s:.1f} s later",
            "",
            f"{'fault':34} {'made':>5} {'recovery, median':>17} {'longest':>9}",
        ]
        recoveries = self._recoveries()
        for kind, count in sorted(Counter(one.kind for one in self.faults).items()):
            times = recoveries[kind]
            lines.append(
                f"{kind:34} {count:5d} "
                + (f"{statistics.median(times):15.1f} s {max(times):7.1f} s" if times else f"{'-':>17} {'-':>9}")
            )
        lines += [f"{'all':34} {len(self.faults):5d}   ({self.skipped} more had nothing to hit)", ""]
        lines += [f"{name:50} {value}" for name, value in self.figures.items()]
        lines.append(f"{'runs by state':50} {self.run_states}")
        lines += ["", f"{'must be 0':50} found"]
        lines += [f"{name:50} {len(found)}" for name, found in self.violations.items()]
        for name, found in self.violations.items():
            lines += [f"\n{name}:"] * bool(found) + [f"  {one}" for one in found[:SHOWN]]
        failures = {pair: count for pair, count in self.answers.items() if pair[1] >= 400}
        if failures:
            lines += ["", "answers other than success:"]
            lines += [f"  {count:5d}  {status}  {kind}" for (kind, status), count in sorted(failures.items())]
        if self.errors:
            lines += ["", "logged as errors:"]
            lines += [f"  {count:5d}  {line}" for line, count in self.errors.most_common(SHOWN)]
        return "\n".join(lines)

    def _recoveries(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        for fault in self.faults:
            over = fault.began if fault.ended is None else fault.ended
            after = [
                one.at
                for one in self.steps
                if one.at > over and (one.who == fault.worker or (fault.worker is None and one.who != USER))
            ]
            if after:
                found[fault.kind].append(min(after) - over)
        return found
