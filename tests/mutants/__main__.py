"""`python -m mutants`: change a line, run the tests that reach it; exit code 1 if a change goes unnoticed.

A survivor is listed in `equivalent.toml` with the reason why it changes nothing, or a test is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import time
from collections import defaultdict

from mutants import trial
from mutants.mutations import Change, Mutant, mutants_of
from mutants.targets import Suite, read_equivalent, read_suites
from mutants.trial import Verdict

LEAST_KILLED = 0.92
SURVIVING = (Verdict.SURVIVED, Verdict.UNREACHED)


def _say(what: str = "") -> None:
    print(what, flush=True)  # noqa: T201 - a command line


def _is_wanted(module: str, only: list[str]) -> bool:
    return not only or any(part in module for part in only)


def _chosen(suites: list[Suite], only: list[str], sample: int | None, seed: int) -> dict[str, list[Mutant]]:
    """Return the mutants to try, by suite; the same seed draws the same ones."""
    all_mutants = [
        (suite.name, mutant)
        for suite in suites
        for module in suite.modules
        if _is_wanted(module, only)
        for mutant in mutants_of(module)
    ]
    if sample is not None and sample < len(all_mutants):
        all_mutants = sorted(random.Random(seed).sample(all_mutants, sample))
    by_suite: dict[str, list[Mutant]] = defaultdict(list)
    for name, mutant in all_mutants:
        by_suite[name].append(mutant)
    return by_suite


def _stale(listed: dict[Change, str], modules: set[str]) -> list[Change]:
    """Return the entries of these modules that are no mutant."""
    with_entries = {each.module for each in listed} & modules
    exist = {Change.of(mutant) for module in with_entries for mutant in mutants_of(module)}
    return sorted(each for each in listed if each.module in with_entries and each not in exist)


def _described(mutant: Mutant, verdict: Verdict) -> str:
    change = Change.of(mutant)
    where = f"{mutant.module}:{mutant.line} in {change.inside or 'the module'}"
    return f"\n{verdict}: {where} ({mutant.operator})\n  - {change.before}\n  + {change.after}"


def _report(verdicts: dict[Mutant, Verdict], listed: dict[Change, str], *, whole: bool) -> bool:
    """Print the rates by module and every survivor that is not listed; return whether all is well."""
    kept: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in verdicts:
        kept[mutant.module].append(mutant)
    unlisted: list[tuple[Mutant, Change]] = []
    known: set[Change] = set()
    noticed: set[Change] = set()
    _say(f"\n{'module':<64} {'mutants':>7} {'killed':>7} {'listed':>7} {'new':>5}")
    killed_of_all = listed_of_all = 0
    for module, mutants in sorted(kept.items()):
        killed = new = 0
        for mutant in mutants:
            if verdicts[mutant] in (Verdict.KILLED, Verdict.ENDLESS):
                killed += 1
                if any(each.module == module for each in listed):
                    noticed.add(Change.of(mutant))
                continue
            change = Change.of(mutant)
            if change in listed:
                known.add(change)
            else:
                unlisted.append((mutant, change))
                new += 1
        killed_of_all += killed
        listed_of_all += len(mutants) - killed - new
        _say(f"{module:<64} {len(mutants):>7} {killed:>7} {len(mutants) - killed - new:>7} {new:>5}")
    rate = killed_of_all / max(len(verdicts), 1)
    _say(f"\n{killed_of_all} of {len(verdicts)} mutants were killed ({rate:.1%}); {listed_of_all} are listed.")
    for mutant, _ in unlisted:
        _say(_described(mutant, verdicts[mutant]))
    if unlisted:
        _say(f"\n{len(unlisted)} survivors are not in tests/mutants/equivalent.toml: write a test that notices them.")
    killed_now = sorted(noticed & listed.keys() - known) if whole else []
    for change in killed_now:
        _say(f"is killed now; remove it from equivalent.toml: {change.module}: {change.before} -> {change.after}")
    return not unlisted and not killed_now and (rate >= LEAST_KILLED or not whole)


def _try_all(
    suites: list[Suite],
    by_suite: dict[str, list[Mutant]],
    jobs: int,
    listed: dict[Change, str],
    verdicts: dict[Mutant, Verdict],
) -> None:
    """Add the verdicts, in the order of the suites, and print survivors and progress."""
    started: float | None = None  # the first verdict comes after a run of all tests with coverage
    total = sum(map(len, by_suite.values()))
    for suite in suites:
        if suite.name not in by_suite:
            continue
        _say(f"{suite.name}: {len(by_suite[suite.name])} mutants")
        with contextlib.closing(trial.decide(suite, by_suite[suite.name], jobs)) as found:
            for mutant, verdict in found:
                verdicts[mutant] = verdict
                started = started or time.monotonic()
                if verdict in SURVIVING and Change.of(mutant) not in listed:
                    _say(_described(mutant, verdict))
                if len(verdicts) % 25 == 0 or len(verdicts) == total:
                    _say(_progress(verdicts, total, time.monotonic() - started))


def _progress(verdicts: dict[Mutant, Verdict], total: int, seconds: float) -> str:
    survivors = sum(each in SURVIVING for each in verdicts.values())
    killed = 1 - survivors / len(verdicts)
    left = seconds / len(verdicts) * (total - len(verdicts))
    return f"{len(verdicts)} of {total}, {killed:.1%} killed, {seconds:.0f} s, about {left:.0f} s left"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="parts of modules' paths, such as energy/traces.py")
    parser.add_argument("--sample", type=int, help="try so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    options = parser.parse_args()
    suites = read_suites()
    listed = read_equivalent()
    by_suite = _chosen(suites, options.only, options.sample, options.seed)
    if not by_suite:
        parser.error(f"no module's path contains {options.only}")
    if stale := _stale(listed, {mutant.module for mutants in by_suite.values() for mutant in mutants}):
        parser.error("equivalent.toml lists what does not exist (any more):\n" + "\n".join(map(str, stale)))
    verdicts: dict[Mutant, Verdict] = {}
    stopped = False
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _try_all(suites, by_suite, options.jobs, listed, verdicts)
    except KeyboardInterrupt:
        stopped = True
        _say("\nstopped; what is known so far:")
    clean = _report(verdicts, listed, whole=options.sample is None and not stopped)
    if stopped:
        sys.exit(130)
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
