"""Every problem of a campaign file at once, also those that can only be asked for once others are mended.

A key that is misspelt is read as the one that is nearest, as its user will mend it; a value that can't be read is left
out. What is asked of the rest then is what would be asked after mending.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic.types import JsonValue

from lem_domain.config.campaign import CAMPAIGN_KEYS, CampaignSpec
from lem_domain.config.expansion import key_problems_of, preview, refusal
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.validation import bounded, model_or_problems, nearest, pointer, unknown_key_message
from lem_domain.errors import ConfigurationError, FieldProblem

Document = Mapping[str, JsonValue]

_KNOWN = CAMPAIGN_KEYS | set(ExperimentConfig.model_fields)
_SHAPING = frozenset({"sweep", "experiments"})
"""Without them it is not known what the experiments are; only their keys can be looked at, not what these mean."""


def problems_of_document(document: Document, *, default_name: str) -> tuple[FieldProblem, ...]:
    """All of them, up to a number; none where the document is a campaign."""
    meant = _meant(document)
    mended = {meant.get(key, key): value for key, value in document.items() if key in _KNOWN or key in meant}
    return bounded(
        iter(
            (
                *(
                    FieldProblem(pointer=pointer((key,)), message=unknown_key_message(str(key), _KNOWN))
                    for key in document
                    if key not in _KNOWN
                ),
                *(_as_written(problem, meant) for problem in _problems(mended, default_name)),
            )
        )
    )


def _meant(document: Document) -> dict[str, str]:
    """Misspelt keys with those that stand for nothing else."""
    found: dict[str, str] = {}
    for key in document:
        near = None if key in _KNOWN else nearest(key, _KNOWN)
        if near is not None and near not in document and near not in found.values():
            found[key] = near
    return found


def _as_written(problem: FieldProblem, meant: Mapping[str, str]) -> FieldProblem:
    head, *rest = problem.pointer.split("/")[1:] or [""]
    written = next((key for key, near in meant.items() if near == head), None)
    if written is None:
        return problem
    return problem.model_copy(update={"pointer": "/".join(("", *pointer((written,)).split("/")[1:], *rest))})


def _problems(document: Document, name: str) -> Iterator[FieldProblem]:
    base = {key: value for key, value in document.items() if key not in CAMPAIGN_KEYS}
    own = {"name": name, **{key: value for key, value in document.items() if key in CAMPAIGN_KEYS}}
    try:
        spec = model_or_problems(CampaignSpec, {**own, "experiment": base})
    except ConfigurationError as error:
        yield from error.findings
        wrong = {problem.pointer.split("/")[1] for problem in error.findings if problem.pointer}
        kept = {key: value for key, value in own.items() if key not in wrong}
        spec = CampaignSpec.model_validate({"name": "campaign", **kept, "experiment": base})
        if wrong & _SHAPING:
            yield from key_problems_of(spec)
            return
    try:
        plan = preview(spec)
        if plan.refused and spec.on_refused == "stop":
            raise refusal(plan)
    except ConfigurationError as error:
        yield from error.findings or (FieldProblem(pointer="", message=str(error)),)
