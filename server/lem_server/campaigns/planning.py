"""From a submitted specification to what would be queued, with everything refused that no worker could ever run."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from pydantic import BaseModel
from pydantic.types import JsonValue

from lem_domain.backends.registry import BackendName, has_engine
from lem_domain.config.campaign import CAMPAIGN_KEYS, CampaignSpec
from lem_domain.config.devices import DevicesConfig
from lem_domain.config.documents import pointer
from lem_domain.config.duration import least_duration
from lem_domain.config.expansion import Needs, Plan, PlannedExperiment, expand, preview
from lem_domain.config.ordering import PlannedRun
from lem_domain.errors import ConfigurationError, FieldProblem
from lem_domain.prompt_sets import builtin_prompt_sets
from lem_domain.wire.campaigns import (
    CampaignPlan,
    MergedView,
    PlannedExperimentView,
    PlannedRunView,
    RefusedView,
)
from lem_server.campaigns.queries import ServedBackend


def plan(spec: CampaignSpec) -> Plan:
    """Every experiment and run of a campaign that is to be queued.

    Raises:
        ConfigurationError: with every problem, each addressed within the body that was sent.
    """
    return _made(spec, expand)


def look_ahead(spec: CampaignSpec) -> Plan:
    """What would be queued, and beside it what is refused.

    Raises:
        ConfigurationError: nothing could be queued at all; with every problem, addressed as above.
    """
    return _made(spec, preview)


def _made(spec: CampaignSpec, make: Callable[[CampaignSpec], Plan]) -> Plan:
    _refuse_unstorable(spec)
    try:
        return make(spec)
    except ConfigurationError as error:
        raise ConfigurationError(str(error), tuple(map(_in_body, error.findings))) from None


def _in_body(problem: FieldProblem) -> FieldProblem:
    """The keys of an experiment stand below `experiment`."""
    if problem.pointer.split("/")[1:2] and problem.pointer.split("/")[1] in CAMPAIGN_KEYS:
        return problem
    return problem.model_copy(update={"pointer": f"/experiment{problem.pointer}"})


def refuse_missing_prompts(planned: Plan, *, held: Collection[str]) -> None:
    """Check that every experiment's prompts are there; `held` are the digests of the sets that the server holds.

    Raises:
        ConfigurationError: with every problem.
    """
    builtin = builtin_prompt_sets()
    problems = {
        problem.message: problem
        for needs in _distinct_needs(planned)
        for problem in (
            *_prompt_problems(needs.builtin, builtin=builtin),
            *(problem for one in _uploaded(needs) for problem in one.problems(held)),
        )
    }
    if problems:
        raise ConfigurationError(next(iter(problems)), tuple(problems.values()))


def datasets_of(planned: Plan) -> frozenset[str]:
    """Digests of the sets of prompts and the traces of arrivals that a plan needs."""
    wanted = (one.digest for needs in _distinct_needs(planned) for one in _uploaded(needs))
    return frozenset(digest for digest in wanted if digest is not None)


def _distinct_needs(planned: Plan) -> Iterable[Needs]:
    return dict.fromkeys(experiment.needs for experiment in planned.experiments)


def notes(planned: Plan, served: Sequence[ServedBackend]) -> tuple[str, ...]:
    """What registered workers can't run, one sentence each, and last how much they can."""
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


def answer(spec: CampaignSpec, planned: Plan, notes_on_it: tuple[str, ...], *, listed: int | None) -> Iterator[bytes]:
    """The JSON of `CampaignPlan` in pieces, with at most `listed` experiments and runs.

    No more of them than make one piece are in memory at a time: as objects, experiments take 9 kB each.
    """
    least = least_duration(planned.runs, [one.needs.window_s for one in planned.experiments], spec.execution.gaps)
    whole = CampaignPlan(
        name=spec.name,
        execution=spec.execution,
        experiment_count=len(planned.experiments),
        run_count=len(planned.runs),
        duplicates=planned.duplicates,
        merged=tuple(MergedView(display_name=one.display_name, same_as=one.same_as) for one in planned.merged),
        refused=planned.refused,
        refusals=tuple(
            RefusedView(display_name=one.display_name, varied=one.varied, problems=tuple(map(_in_body, one.problems)))
            for one in planned.refusals
        ),
        minimum_duration_s=least.total_s,
        minimum_gap_s=least.gaps_s,
        notes=notes_on_it,
        experiments=(),
        runs=(),
    )
    yield whole.model_dump_json().encode().removesuffix(_LISTS)
    yield b'"experiments":['
    yield from _pieces(map(_experiment_view, planned.experiments[:listed]))
    yield b'],"runs":['
    yield from _pieces(map(_run_view, planned.runs[:listed]))
    yield b"]}"


_LISTS = b'"experiments":[],"runs":[]}'
"""The end of a `CampaignPlan` that lists nothing."""
_PIECE = 500


def _pieces(views: Iterator[BaseModel]) -> Iterator[bytes]:
    comma = b""
    while piece := [view.model_dump_json().encode() for view in itertools.islice(views, _PIECE)]:
        yield comma + b",".join(piece)
        comma = b","


def _experiment_view(one: PlannedExperiment) -> PlannedExperimentView:
    return PlannedExperimentView(
        display_name=one.display_name, varied=one.varied, config=one.config, config_hash=one.config_hash
    )


def _run_view(run: PlannedRun) -> PlannedRunView:
    return PlannedRunView(experiment=run.experiment, cycle=run.cycle, position=run.position)


def _refuse_unstorable(spec: CampaignSpec) -> None:
    pointers = tuple(_with_nul(spec.model_dump(mode="json"), ()))
    if pointers:
        message = "a text holds the character U+0000, which can't be stored; remove it"
        raise ConfigurationError(message, tuple(FieldProblem(pointer=one, message=message) for one in pointers))


def _with_nul(value: JsonValue, place: tuple[str | int, ...]) -> Iterator[str]:
    """JSON pointers to every text, key or value, that PostgreSQL refuses."""
    if isinstance(value, str) and "\x00" in value:
        yield pointer(place)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _with_nul(inner, (*place, index))
    elif isinstance(value, dict):
        for key, inner in value.items():
            if "\x00" in key:
                yield pointer((*place, key))
            yield from _with_nul(inner, (*place, key))


def _prompt_problems(wanted: str | None, *, builtin: Collection[str]) -> Iterator[FieldProblem]:
    if wanted is not None and wanted not in builtin:
        yield FieldProblem(
            pointer="/experiment/prompts/builtin",
            message=f"there is no built-in set of prompts {wanted!r}; choose one of {', '.join(builtin)}",
        )


class _Uploaded(NamedTuple):
    """What an experiment names by the digest of its lines; `lemctl` puts that in a file's place."""

    what: str
    file_key: str
    file: str | None
    digest_key: str
    digest: str | None

    def problems(self, held: Collection[str]) -> Iterator[FieldProblem]:
        """Why the server can't take it as it stands."""
        if self.file is not None:
            yield FieldProblem(
                pointer=f"/experiment/{self.file_key.replace('.', '/')}",
                message=f"only lemctl reads files; upload the lines (PUT /api/v1/datasets/{{sha256}}) and give "
                f"{self.digest_key} instead of {self.file_key}",
            )
        if self.digest is not None and self.digest not in held:
            yield FieldProblem(
                pointer=f"/experiment/{self.digest_key.replace('.', '/')}",
                message=f"the server holds no {self.what} {self.digest}; upload it first "
                "(PUT /api/v1/datasets/{sha256})",
            )


def _uploaded(needs: Needs) -> tuple[_Uploaded, ...]:
    return (
        _Uploaded("dataset", "prompts.file", needs.prompts_file, "prompts.dataset", needs.dataset),
        _Uploaded("trace", "traffic.trace_file", needs.trace_file, "traffic.trace", needs.trace),
    )
