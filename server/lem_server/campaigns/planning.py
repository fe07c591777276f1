"""Expands a submitted campaign and refuses what no worker could run. The client's own expansion is not trusted."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from pydantic import BaseModel
from pydantic.types import JsonValue

from lem_domain.backends.registry import BackendName, has_engine
from lem_domain.config.campaign import CAMPAIGN_KEYS, CampaignSpec
from lem_domain.config.devices import DevicesConfig
from lem_domain.config.documents import pointer
from lem_domain.config.expansion import Needs, Plan, expand, preview
from lem_domain.errors import ConfigurationError, FieldProblem
from lem_domain.prompt_sets import builtin_prompt_sets
from lem_domain.wire.campaigns import CampaignPlan, PlannedExperimentView, PlannedRunView
from lem_server.campaigns.queries import ServedBackend


def expand_campaign(spec: CampaignSpec, *, list_refused: bool = False) -> Plan:
    """Expand a campaign into its experiments and runs, as `POST /campaigns` queues them.

    With `list_refused`, as `POST /campaigns:plan` answers, invalid combinations are listed and not raised.

    Raises:
        ConfigurationError: with every problem, each with its JSON pointer in the request's body.
    """
    _refuse_unstorable(spec)
    try:
        return preview(spec) if list_refused else expand(spec)
    except ConfigurationError as error:
        raise ConfigurationError(str(error), tuple(map(_in_body, error.field_problems))) from None


def _in_body(problem: FieldProblem) -> FieldProblem:
    """Prefix the keys of an experiment, which are below `experiment` in the body."""
    if problem.pointer.split("/")[1:2] and problem.pointer.split("/")[1] in CAMPAIGN_KEYS:
        return problem
    return problem.model_copy(update={"pointer": f"/experiment{problem.pointer}"})


def refuse_missing_prompts(planned: Plan, *, existing: Collection[str]) -> None:
    """Check that the prompts of every experiment exist; `existing` are the digests of the stored data sets.

    Raises:
        ConfigurationError: with every problem.
    """
    builtin = builtin_prompt_sets()
    problems = {
        problem.message: problem
        for needs in _distinct_needs(planned)
        for problem in (
            *_prompt_problems(needs.builtin, builtin=builtin),
            *(problem for one in _uploaded(needs) for problem in one.problems(existing)),
        )
    }
    if problems:
        raise ConfigurationError(next(iter(problems)), tuple(problems.values()))


def datasets_of(planned: Plan) -> frozenset[str]:
    """Return the digests of the data sets and arrival traces that a plan needs."""
    wanted = (one.digest for needs in _distinct_needs(planned) for one in _uploaded(needs))
    return frozenset(digest for digest in wanted if digest is not None)


def _distinct_needs(planned: Plan) -> Iterable[Needs]:
    return dict.fromkeys(experiment.needs for experiment in planned.experiments)


def worker_notes(planned: Plan, served: Sequence[ServedBackend]) -> tuple[str, ...]:
    """Return one sentence per need that no registered worker meets, and last how many runs they can run."""
    wanted: dict[BackendName, dict[DevicesConfig, None]] = {}
    for needs in _distinct_needs(planned):
        wanted.setdefault(needs.backend, {})[needs.devices] = None
    found: list[str] = []
    able: dict[BackendName, list[ServedBackend]] = {}
    for backend, choices in wanted.items():
        workers = [one for one in served if one.backend == backend]
        able[backend] = [one for one in workers if has_engine(backend, one.versions)]
        if not workers:
            found.append(f"No registered worker serves backend {backend.value!r}; its runs wait until one is started.")
        elif not able[backend]:
            found.append(
                f"No registered worker for backend {backend.value!r} has its engine; its runs end as "
                "backend_unavailable, each with what to install."
            )
        else:
            found += _missing_devices(backend, choices, able[backend])
    can = Counter(
        any(one.needs.devices.fit(worker.devices) for worker in able[one.needs.backend]) for one in planned.experiments
    )
    cycles = len(planned.runs) // max(1, len(planned.experiments))
    share = "all" if not can[False] else f"{can[True] * cycles} of the"
    return (*found, f"Registered workers can run {share} {len(planned.runs)} runs.")


def _missing_devices(
    backend: BackendName, choices: Collection[DevicesConfig], workers: Sequence[ServedBackend]
) -> Iterator[str]:
    most = max(len(worker.devices) for worker in workers)
    needed = max(choice.count for choice in choices)
    if needed > most:
        yield (
            f"Some runs need {needed} devices, but no registered worker for backend {backend.value!r} has more than "
            f"{most}; they wait until one has."
        )
    for choice in choices:
        if choice.count <= most and not any(choice.fit(worker.devices) for worker in workers):
            yield (
                f"No registered worker for backend {backend.value!r} has {choice.describe()}; runs that want them wait "
                "until one has."
            )


def plan_json(spec: CampaignSpec, planned: Plan, notes: tuple[str, ...], *, listed: int | None) -> Iterator[bytes]:
    """Yield the JSON of `CampaignPlan` in pieces, with at most `listed` experiments and runs.

    Only one piece of them is in memory at a time, because an experiment as an object takes 9 kB.
    """
    in_body = [one._replace(problems=tuple(map(_in_body, one.problems))) for one in planned.refusals]
    whole = CampaignPlan.without_lists(spec, planned._replace(refusals=tuple(in_body)), notes)
    yield whole.model_dump_json().encode().removesuffix(_LISTS)
    yield b'"experiments":['
    yield from _pieces(map(PlannedExperimentView.of, planned.experiments[:listed]))
    yield b'],"runs":['
    yield from _pieces(map(PlannedRunView.of, planned.runs[:listed]))
    yield b"]}"


_LISTS = b'"experiments":[],"runs":[]}'
"""The end of a `CampaignPlan` that lists nothing."""
_PIECE = 500


def _pieces(views: Iterator[BaseModel]) -> Iterator[bytes]:
    comma = b""
    while piece := [view.model_dump_json().encode() for view in itertools.islice(views, _PIECE)]:
        yield comma + b",".join(piece)
        comma = b","


def _refuse_unstorable(spec: CampaignSpec) -> None:
    pointers = tuple(_with_nul(spec.model_dump(mode="json"), ()))
    if pointers:
        message = "a text contains the character U+0000, which cannot be stored; remove it"
        raise ConfigurationError(message, tuple(FieldProblem(pointer=one, message=message) for one in pointers))


def _with_nul(value: JsonValue, path: tuple[str | int, ...]) -> Iterator[str]:
    """Yield the JSON pointers of all keys and values that PostgreSQL rejects."""
    if isinstance(value, str) and "\x00" in value:
        yield pointer(path)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _with_nul(inner, (*path, index))
    elif isinstance(value, dict):
        for key, inner in value.items():
            if "\x00" in key:
                yield pointer((*path, key))
            yield from _with_nul(inner, (*path, key))


def _prompt_problems(wanted: str | None, *, builtin: Collection[str]) -> Iterator[FieldProblem]:
    if wanted is not None and wanted not in builtin:
        yield FieldProblem(
            pointer="/experiment/prompts/builtin",
            message=f"there is no built-in prompt set {wanted!r}; choose one of {', '.join(builtin)}",
        )


class _Uploaded(NamedTuple):
    """A data set that an experiment names by its digest; `lemctl` replaces a file name by it."""

    kind: str
    file_key: str
    file: str | None
    digest_key: str
    digest: str | None

    def problems(self, existing: Collection[str]) -> Iterator[FieldProblem]:
        """Yield why the server cannot accept the experiment."""
        if self.file is not None:
            yield FieldProblem(
                pointer=f"/experiment/{self.file_key.replace('.', '/')}",
                message=f"only lemctl reads files; upload the content (PUT /api/v1/datasets/{{sha256}}) and give "
                f"{self.digest_key} instead of {self.file_key}",
            )
        if self.digest is not None and self.digest not in existing:
            yield FieldProblem(
                pointer=f"/experiment/{self.digest_key.replace('.', '/')}",
                message=f"the server holds no {self.kind} {self.digest}; upload it first "
                "(PUT /api/v1/datasets/{sha256})",
            )


def _uploaded(needs: Needs) -> tuple[_Uploaded, ...]:
    return (
        _Uploaded("dataset", "prompts.file", needs.prompts_file, "prompts.dataset", needs.dataset),
        _Uploaded("trace", "traffic.trace_file", needs.trace_file, "traffic.trace", needs.trace),
    )
