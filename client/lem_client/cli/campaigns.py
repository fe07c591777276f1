"""`lemctl list` and `show`: campaigns, runs, attempts and workers by id or name."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Annotated

import typer
from pydantic import BaseModel
from pydantic.types import JsonValue

from lem_client.cli.exits import UsageProblem
from lem_client.cli.naming import campaign_id_of, kind_of
from lem_client.cli.session import Session, clean, session_of, table
from lem_client.errors import NotFound
from lem_client.render import as_config as again
from lem_client.render import explain
from lem_domain.errors import LemError
from lem_domain.ids import IdKind
from lem_domain.results.run import RunResult
from lem_domain.states import CampaignState, RunState
from lem_domain.wire.runs import AttemptView, RunView


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("list")(list_campaigns)
    app.command("show")(show)


def list_campaigns(
    context: typer.Context,
    state: Annotated[CampaignState | None, typer.Option(help="Only campaigns in this state.")] = None,
    name: Annotated[str | None, typer.Option(help="Only campaigns of exactly this name.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only campaigns with this label; may be given several times."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 20,
) -> None:
    """List campaigns, the newest first.

    \b
    lemctl list
    lemctl list --state active --limit 100
    lemctl list --label team=nlp --label machine=a100
    """
    session = session_of(context)
    labels = dict(map(_label, label or ()))
    found = tuple(islice(session.client.campaigns(state=state, name=name, labels=labels), limit))
    if session.as_json:
        session.print_json_list(found)
    elif not found and (state is not None or name is not None or labels):
        session.say("No campaign is like that; `lemctl list` shows those that there are.")
    elif not found:
        session.say("There are no campaigns; `lemctl run FILE` makes one.")
    else:
        rows = [
            (one.id, one.name, one.state.value, explain.counts(one), explain.moment(one.created_at), one.submitted_by)
            for one in found
        ]
        session.print(table(("id", "name", "state", "runs", "submitted", "by"), rows))


def _label(given: str) -> tuple[str, str]:
    key, separator, value = given.partition("=")
    if not key or not separator:
        raise UsageProblem(f"--label {given}: write it as KEY=VALUE, for example team=nlp.")
    return key, value


def show(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="Id of a campaign, experiment, run, attempt or worker; or a campaign's name."
        ),
    ],
    as_config: Annotated[
        bool,
        typer.Option("--as-config", help="Of a run or experiment: a campaign file that submits the same one again."),
    ] = False,
) -> None:
    """Show one thing in full. Of a run: its history, its configuration, and every figure explained in words.

    \b
    lemctl show quickstart      a campaign and its runs
    lemctl show run_0199…       a run: states, configuration, energy in words, findings
    lemctl show att_0199…       one try at a run, with its environment and raw evidence
    lemctl show run_0199… --as-config > again.yaml
    """
    session = session_of(context)
    if as_config:
        _show_as_config(session, what)
        return
    match kind_of(what):
        case IdKind.RUN:
            _show_run(session, what)
        case IdKind.ATTEMPT:
            _show_attempt(session, what)
        case IdKind.WORKER:
            worker = session.client.worker(what)
            give(session, worker, explain.worker(worker))
        case IdKind.EXPERIMENT:
            experiment = session.client.experiment(what)
            give(session, experiment, explain.experiment(experiment))
        case IdKind.TOKEN:
            raise LemError("tokens can't be shown here; GET /api/v1/tokens lists them.")
        case _:
            _show_campaign(session, campaign_id_of(session.client, what))


def give(session: Session, value: BaseModel, lines: list[str]) -> None:
    """Print a thing as JSON or in words."""
    if session.as_json:
        session.print_json(value)
    else:
        session.print(clean("\n".join(lines)))


def _show_campaign(session: Session, campaign_id: str) -> None:
    campaign = session.client.campaign(campaign_id)
    experiments = tuple(session.client.experiments(campaign_id))
    runs = tuple(session.client.runs(campaign_id=campaign_id))
    if session.as_json:
        session.print_json(
            {
                "campaign": _json(campaign),
                "experiments": [_json(one) for one in experiments],
                "runs": [_json(one) for one in runs],
            }
        )
        return
    session.print(clean("\n".join(explain.campaign(campaign))))
    rows = [
        (one.id, one.display_name, str(one.cycle), one.state.value, str(one.attempts), one.message or one.reason or "")
        for one in runs
    ]
    session.print(table(("id", "experiment", "cycle", "state", "attempts", "why"), rows, right=("cycle", "attempts")))


def _show_run(session: Session, run_id: str) -> None:
    client = session.client
    run = client.run(run_id)
    transitions = tuple(client.transitions(run_id))
    lease_events = tuple(client.lease_events(run_id))
    attempts = tuple(client.attempts(run_id))
    result = _result(session, run)
    experiment = client.experiment(run.experiment_id)
    if session.as_json:
        session.print_json(
            {
                "run": _json(run),
                "experiment": _json(experiment),
                "transitions": [_json(one) for one in transitions],
                "lease_events": [_json(one) for one in lease_events],
                "attempts": [_json(one) for one in attempts],
                "result": None if result is None else _json(result),
            }
        )
        return
    lines = explain.run(run)
    lines += ["", "History", *explain.history(transitions, lease_events, attempts)]
    for attempt in attempts:
        lines += ["", *explain.attempt(attempt)]
    last = attempts[-1] if attempts else None
    if last is not None and last.effective_config is not None:
        lines += ["", "Configuration", *explain.configuration(last.effective_config)]
    lines += ["", "Set by (what is not listed is the default)", *explain.provenance(experiment)]
    lines += ["", "Result", *(explain.no_result(run) if result is None else explain.result(result))]
    if last is not None:
        lines += ["", "Raw evidence", *explain.evidence(client.server, last)]
    session.print(clean("\n".join(lines)))


def _show_attempt(session: Session, attempt_id: str) -> None:
    attempt: AttemptView = session.client.attempt(attempt_id)
    lines = explain.attempt(attempt)
    if attempt.effective_config is not None:
        lines += ["", "Configuration", *explain.configuration(attempt.effective_config)]
    if attempt.environment is not None:
        lines += ["", "Environment", *explain.values(attempt.environment)]
    lines += ["", "Raw evidence", *explain.evidence(session.client.server, attempt)]
    give(session, attempt, lines)


def _result(session: Session, run: RunView) -> RunResult | None:
    if run.state is not RunState.AGGREGATED:
        return None
    try:
        return session.client.result(run.id)
    except NotFound:
        return None


def _show_as_config(session: Session, what: str) -> None:
    """The file goes to standard output alone, so that `> again.yaml` makes it."""
    client = session.client
    kind = kind_of(what)
    if kind is IdKind.RUN:
        run = client.run(what)
        attempt = client.attempt(run.current_attempt) if run.current_attempt is not None else None
        experiment = client.experiment(run.experiment_id)
    elif kind is IdKind.EXPERIMENT:
        run, attempt = None, None
        experiment = client.experiment(what)
    else:
        raise UsageProblem(
            "--as-config needs the id of a run or an experiment; `lemctl show CAMPAIGN` lists a campaign's."
        )
    campaign = client.campaign(experiment.campaign_id)
    document = again.document(experiment, campaign, run)
    if session.as_json:
        session.print_json(document)
        return
    lines = again.origin(client.server, experiment, campaign, run, attempt)
    comments = [clean(line.replace("\n", " ")) for line in lines]
    sys.stdout.write(again.yaml_text(document, experiment, comments))


def _json(value: BaseModel) -> dict[str, JsonValue]:
    made: dict[str, JsonValue] = value.model_dump(mode="json")
    return made
