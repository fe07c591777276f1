"""Finds which experiments are compared with each other."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lem_domain.wire.decisions import ComparedPair, UnmatchedExperiment
from lem_server.decisions.facts import ExperimentFacts


class Matched(NamedTuple):
    """Pairs of a reference and a candidate, and the experiments without a partner."""

    pairs: tuple[tuple[ExperimentFacts, ExperimentFacts], ...]
    reference: tuple[UnmatchedExperiment, ...] = ()
    candidate: tuple[UnmatchedExperiment, ...] = ()


def match_first(experiments: Sequence[ExperimentFacts]) -> Matched:
    """Compare the first experiment of a campaign with every other one."""
    return Matched(tuple((experiments[0], one) for one in experiments[1:]))


def match_campaigns(
    reference: Sequence[ExperimentFacts], candidate: Sequence[ExperimentFacts], keys: Sequence[str]
) -> Matched:
    """Match experiments whose configurations are equal without `keys` (a key also removes what is below it).

    Where they are equal in one campaign already, because a removed key is what it varies, none of them is matched.
    """
    groups: dict[str, tuple[list[ExperimentFacts], list[ExperimentFacts]]] = defaultdict(lambda: ([], []))
    for side, experiments in enumerate((reference, candidate)):
        for one in experiments:
            groups[_identity(one.config, keys)][side].append(one)
    pairs = []
    left: tuple[list[UnmatchedExperiment], list[UnmatchedExperiment]] = ([], [])
    for group in groups.values():
        if len(group[0]) == len(group[1]) == 1:
            pairs.append((group[0][0], group[1][0]))
            continue
        for side in (0, 1):
            left[side].extend(_unmatched(one, _why(group[side], group[1 - side])) for one in group[side])
    return Matched(tuple(pairs), *map(tuple, left))


def match_named(
    reference: Sequence[ExperimentFacts], candidate: Sequence[ExperimentFacts], pairs: Sequence[ComparedPair]
) -> Matched:
    """Match the pairs that a request names; experiments in none are listed.

    Raises:
        KeyError: an experiment is in neither list; the argument is its id.
    """
    by_id = ({one.experiment_id: one for one in reference}, {one.experiment_id: one for one in candidate})
    found = tuple((by_id[0][one.reference], by_id[1][one.candidate]) for one in pairs)
    rest = "no pair of the request names it"
    return Matched(
        found,
        tuple(_unmatched(one, rest) for one in reference if one not in [first for first, _ in found]),
        tuple(_unmatched(one, rest) for one in candidate if one not in [second for _, second in found]),
    )


def without(values: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return nested values without those at dotted keys."""
    found = dict(values)
    for key in keys:
        first, _, rest = key.partition(".")
        if not rest:
            found.pop(first, None)
        elif isinstance(found.get(first), Mapping):
            found[first] = without(found[first], [rest])
    return found


def _identity(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    return json.dumps(without(config, keys), sort_keys=True)


def _unmatched(one: ExperimentFacts, reason: str) -> UnmatchedExperiment:
    return UnmatchedExperiment(experiment_id=one.experiment_id, display_name=one.display_name, reason=reason)


def _why(own: Sequence[ExperimentFacts], others: Sequence[ExperimentFacts]) -> str:
    if not others:
        return "the other campaign has no experiment with this configuration; name the keys that differ on purpose"
    most = max(len(own), len(others))
    return f"{most} experiments of one campaign are equal without the named keys; name pairs of experiments"
