"""What differs between two experiments, and whether they can be compared all the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from lem_domain.wire.decisions import ComparabilityCode, ComparabilityFinding, ConfigDifference
from lem_server.decisions.facts import CycleFacts, ExperimentFacts

_MOMENTARY: Final = frozenset({"clock", "seeds", "prompts", "model_files", "tokenizer_sha256", "model_files_reason"})
"""Parts of an environment that differ between any two attempts, or are compared as work."""
_SAME_TOKENS: Final = 0.001
"""Relative: output tokens per request may differ by so much between equal work that was not drained to the end."""
_QUALITY: Final = 0.005
"""Relative: perplexities of one model differ by so much between number formats without a loss that is seen in use."""


def differences(reference: ExperimentFacts, candidate: ExperimentFacts) -> tuple[ConfigDifference, ...]:
    """Return every value in which two experiments differ: requested, in force, and of the environment."""
    first, second = (facts.usable[0] if facts.usable else None for facts in (reference, candidate))
    found = list(_between("requested", reference.config, candidate.config))
    if first is not None and second is not None:
        found += _between("effective", first.effective, second.effective)
        found += _between("environment", _lasting(first.environment), _lasting(second.environment))
    return tuple(found)


def comparability(
    reference: ExperimentFacts,
    candidate: ExperimentFacts,
    found: Sequence[ConfigDifference],
    intended: Sequence[str],
) -> tuple[ComparabilityFinding, ...]:
    """Return what makes two experiments hard to compare; `intended` are the keys that the user varies."""
    code = ComparabilityCode
    findings = []

    def add(which: ComparabilityCode, message: str) -> None:
        findings.append(ComparabilityFinding(code=which, message=message))

    for reason in _other_work(reference.usable, candidate.usable):
        add(code.DIFFERENT_WORK, f"{reason}: the two did not do the same work, so neither is called better or worse.")
    if not same_sensors(reference, candidate):
        add(
            code.DIFFERENT_DEVICE,
            "They were measured on different devices: the errors of their sensors are taken as independent, and the "
            "interval holds the worst case.",
        )
    days = [{one.started_at.date() for one in facts.usable if one.started_at} for facts in (reference, candidate)]
    if all(days) and not days[0] & days[1]:
        add(code.DIFFERENT_TIME, "They were measured on different days; how days differ is in no interval.")
    more = [one.path for one in found if not _is_intended(one, intended)]
    if more:
        shown = ", ".join(more[:_SHOWN]) + (f" and {len(more) - _SHOWN} more" if len(more) > _SHOWN else "")
        add(code.MORE_THAN_INTENDED, f"More differs than what was varied: {shown}. A difference may be due to that.")
    for facts in (reference, candidate):
        for verdict, which, follows in (
            ("invalid", code.EXCLUDED_CYCLES, "are invalid and in no figure"),
            ("questionable", code.QUESTIONABLE_CYCLES, "are questionable and in the figures"),
        ):
            cycles = [str(one.cycle) for one in facts.cycles if one.verdict == verdict]
            if cycles:
                add(which, f"{facts.display_name}: cycles {', '.join(cycles)} {follows}.")
    return tuple(findings)


def same_sensors(reference: ExperimentFacts, candidate: ExperimentFacts) -> bool:
    """Whether every cycle of both was measured by the same sensors."""
    return len({one.sensors for facts in (reference, candidate) for one in facts.usable}) < 2


def are_paired(reference: ExperimentFacts, candidate: ExperimentFacts) -> bool:
    """Whether the cycles of two experiments are pairs: of one campaign, and every pair on the same devices."""
    if reference.campaign_id != candidate.campaign_id:
        return False
    first = {one.cycle: one.devices for one in reference.usable}
    second = {one.cycle: one.devices for one in candidate.usable}
    return all(first[cycle] == second[cycle] for cycle in first.keys() & second.keys())


_SHOWN = 8


def _other_work(reference: Sequence[CycleFacts], candidate: Sequence[CycleFacts]) -> Iterator[str]:
    for what, name in (("prompts", "Their prompts differ"), ("model", "The files of their models differ")):
        both = [{getattr(one.work, what) for one in side} - {None} for side in (reference, candidate)]
        if all(both) and both[0] != both[1]:
            yield name
    tokens = [_known([one.work.tokens_per_request for one in side]) for side in (reference, candidate)]
    if all(tokens):
        first, second = (math.fsum(side) / len(side) for side in tokens)
        if abs(second - first) > _SAME_TOKENS * first:
            yield f"They generated {first:.6g} and {second:.6g} tokens per request"
    quality = [_known([one.work.perplexity for one in side]) for side in (reference, candidate)]
    # The own error: the spread over cycles, and what number formats alone change.
    if all(quality) and min(quality[1]) > max(quality[0]) * (1 + _QUALITY):
        yield f"The candidate's perplexity is {min(quality[1]):.5g}, the reference's {max(quality[0]):.5g}"


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _is_intended(one: ConfigDifference, intended: Sequence[str]) -> bool:
    return any(one.path == key or one.path.startswith(f"{key}.") for key in intended)


def _lasting(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in environment.items() if name not in _MOMENTARY}


def _between(part: str, first: object, second: object, path: str = "") -> Iterator[ConfigDifference]:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in dict.fromkeys((*first, *second)):
            yield from _between(part, first.get(name), second.get(name), f"{path}.{name}" if path else str(name))
    elif first != second:
        yield ConfigDifference.model_validate({"part": part, "path": path, "reference": first, "candidate": second})
