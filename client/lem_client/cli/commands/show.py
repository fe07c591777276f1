"""`lemctl show`: one campaign, experiment, run, attempt or worker in full."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lem_client.cli.commands import Section, command
from lem_client.cli.exits import UsageError
from lem_client.cli.method_option import MethodOption
from lem_client.cli.naming import campaign_id_of, kind_of
from lem_client.cli.session import Session, session_of
from lem_client.errors import NotFound
from lem_client.files import as_config
from lem_client.render import explain
from lem_client.render.terminal import clean, table
from lem_domain.errors import LemError
from lem_domain.ids import IdKind
from lem_domain.results.method import MethodVersion
from lem_domain.results.run import RunResult
from lem_domain.states import RunState
from lem_domain.wire.runs import RunView


@command("show", Section.INSPECT)
def show(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="Id of a campaign, experiment, run, attempt or worker; or a campaign's name."
        ),
    ],
    as_config_: Annotated[
        bool,
        typer.Option("--as-config", help="Print a campaign file that submits the same run or experiment again."),
    ] = False,
    method: MethodOption = None,
) -> None:
    """Show one resource in full. Of a run: its history, its configuration, and every figure with its explanation.

    \b
    lemctl show quickstart      a campaign and its runs
    lemctl show run_0199…       a run: states, configuration, energy, findings
    lemctl show att_0199…       an attempt: environment and raw evidence
    lemctl show run_0199… --as-config > again.yaml
    """
    session = session_of(context)
    if as_config_:
        _show_as_config(session, target)
        return
    match kind_of(target):
        case IdKind.RUN:
            _show_run(session, target, method)
        case IdKind.ATTEMPT:
            _show_attempt(session, target)
        case IdKind.WORKER:
            worker = session.client.worker(target)
            session.show(worker, explain.worker(worker))
        case IdKind.EXPERIMENT:
            experiment = session.client.experiment(target)
            session.show(experiment, explain.experiment(experiment))
        case IdKind.TOKEN:
            raise LemError("lemctl does not show tokens; GET /api/v1/tokens lists them.")
        case _:
            _show_campaign(session, campaign_id_of(session.client, target))


def _show_campaign(session: Session, campaign_id: str) -> None:
    campaign = session.client.campaign(campaign_id)
    experiments = tuple(session.client.experiments(campaign_id))
    runs = tuple(session.client.runs(campaign_id=campaign_id))
    if session.as_json:
        session.print_json({"campaign": campaign, "experiments": experiments, "runs": runs})
        return
    session.print(clean("\n".join(explain.campaign(campaign))))
    rows = [
        (one.id, one.display_name, str(one.cycle), one.state.value, str(one.attempts), one.message or one.reason or "")
        for one in runs
    ]
    session.print(table(("id", "experiment", "cycle", "state", "attempts", "why"), rows, right=("cycle", "attempts")))


def _show_run(session: Session, run_id: str, method: MethodVersion | None) -> None:
    client = session.client
    run = client.run(run_id)
    transitions = tuple(client.transitions(run_id))
    lease_events = tuple(client.lease_events(run_id))
    attempts = tuple(client.attempts(run_id))
    result = _stored_result(session, run, method)
    experiment = client.experiment(run.experiment_id)
    if session.as_json:
        session.print_json(
            {
                "run": run,
                "experiment": experiment,
                "transitions": transitions,
                "lease_events": lease_events,
                "attempts": attempts,
                "result": result,
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
    lines += ["", "Set by (values that are not listed are defaults)", *explain.provenance(experiment)]
    lines += ["", "Result", *(explain.no_result(run, method) if result is None else explain.result(result))]
    if last is not None:
        lines += ["", "Raw evidence", *explain.evidence(client.server, last)]
    session.print(clean("\n".join(lines)))


def _show_attempt(session: Session, attempt_id: str) -> None:
    attempt = session.client.attempt(attempt_id)
    lines = explain.attempt(attempt)
    if attempt.effective_config is not None:
        lines += ["", "Configuration", *explain.configuration(attempt.effective_config)]
    if attempt.environment is not None:
        lines += ["", "Environment", *explain.values(attempt.environment)]
    lines += ["", "Raw evidence", *explain.evidence(session.client.server, attempt)]
    session.show(attempt, lines)


def _stored_result(session: Session, run: RunView, method: MethodVersion | None) -> RunResult | None:
    if run.state is not RunState.AGGREGATED:
        return None
    try:
        return session.client.result(run.id, method=method)
    except NotFound:
        return None


def _show_as_config(session: Session, target: str) -> None:
    client = session.client
    kind = kind_of(target)
    if kind is IdKind.RUN:
        run = client.run(target)
        attempt = client.attempt(run.current_attempt) if run.current_attempt is not None else None
        experiment = client.experiment(run.experiment_id)
    elif kind is IdKind.EXPERIMENT:
        run, attempt = None, None
        experiment = client.experiment(target)
    else:
        raise UsageError(
            "--as-config needs the id of a run or an experiment; `lemctl show CAMPAIGN` lists a campaign's."
        )
    campaign = client.campaign(experiment.campaign_id)
    document = as_config.document(experiment, campaign, run)
    if session.as_json:
        session.print_json(document)
        return
    lines = as_config.origin_lines(client.server, experiment, campaign, run, attempt)
    comments = [clean(line.replace("\n", " ")) for line in lines]
    sys.stdout.write(as_config.yaml_text(document, comments))
