"""`lemctl window-study`: how long the window of a campaign has to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lem_client.cli.commands import Section, command
from lem_client.cli.exits import UsageError
from lem_client.cli.method_option import MethodOption
from lem_client.cli.session import session_of
from lem_client.render.numbers import MISSING, duration, quantity
from lem_client.render.terminal import clean, table
from lem_domain.results.figures import Figure
from lem_domain.results.window_study import DEFAULT_LENGTHS_S, DEFAULT_TARGET, WindowStudy

if TYPE_CHECKING:
    from rich.console import RenderableType

_HEADINGS = ("window", "n", "per output token", "spread", "bound", "steady")


@command("window-study", Section.INSPECT)
def window_study(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of a run with a long window.")],
    lengths: Annotated[str, typer.Option(metavar="S,S,…", help="Lengths of windows to study, in seconds.")] = ",".join(
        f"{length:g}" for length in DEFAULT_LENGTHS_S
    ),
    target: Annotated[float, typer.Option(help="Largest spread and bound that are wanted, relative.")] = DEFAULT_TARGET,
    method: MethodOption = None,
) -> None:
    """Show how the energy per token of a run spreads in windows of several lengths, and the shortest that is enough.

    Cuts the window of one run into shorter ones, so that nothing is measured again. The spread between cycles is not
    smaller, and may be larger.

    \b
    lemctl window-study run_0199…
    lemctl window-study run_0199… --lengths 2,5,10,30,60,120 --target 0.01
    """
    session = session_of(context)
    found = session.client.window_study(run, lengths_s=_seconds(lengths), target=target, method=method)
    if session.as_json:
        session.print_json(found)
        return
    of = "the steady state" if found.within == "steady_state" else "the window"
    session.print(clean(f"windows cut out of {of}, {duration(found.duration_s)}"))
    session.print(_table(found))
    session.print(clean("\n".join(_notes(found))))


def _seconds(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--lengths {text}: write seconds with commas between, for example 5,10,30.") from None


def _table(found: WindowStudy) -> RenderableType:
    rows = [
        (
            duration(one.length_s),
            str(one.windows),
            quantity(one.energy_per_output_token_j.value, "J"),
            _percent(one.cv),
            _percent(one.bound),
            _percent(one.steady_share),
        )
        for one in found.lengths
    ]
    return table(_HEADINGS, rows, right=_HEADINGS)


def _notes(found: WindowStudy) -> list[str]:
    """Return the shortest length, or why there is none, and the reason of every missing figure once."""
    reasons: dict[str, None] = {}
    for one in found.lengths:
        for name, figure in (("spread", one.cv), ("bound", one.bound), ("steady", one.steady_share)):
            if figure.value is None:
                reasons[f"{MISSING} {name}: {figure.reason}"] = None
    shortest = found.shortest_s
    if shortest.value is None:
        last = f"no length: {shortest.reason} of {found.target:.2%}"
    else:
        last = f"from {duration(shortest.value)} on spread and bound are within {found.target:.2%}"
    return [*reasons, last, "bound: without the sensor's gain and offset, which no length makes smaller"]


def _percent(figure: Figure) -> str:
    return MISSING if figure.value is None else f"{figure.value:.2%}"
