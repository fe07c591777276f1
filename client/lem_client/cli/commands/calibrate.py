"""`lemctl calibrate`: gain and offset of a GPU's power readings by an external meter's log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from lem_client.cli.commands import Section, command
from lem_client.cli.exits import UsageError
from lem_client.cli.session import session_of
from lem_client.errors import FileError
from lem_client.files.yaml_dialect import as_block
from lem_client.render.numbers import number
from lem_client.render.terminal import clean
from lem_domain.config.validation import model_or_problems
from lem_domain.wire.calibration import (
    MAX_METER_LOG_BYTES,
    CalibrationFit,
    ClockSource,
    FittedPart,
    MeterLogOptions,
    PowerUnit,
)


def _or(choices: Any) -> str:
    return "|".join(get_args(choices))


@command("calibrate", Section.MEASURE)
def calibrate(
    context: typer.Context,
    log: Annotated[Path, typer.Argument(metavar="FILE", help="The meter's log: CSV with times and powers.")],
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="The run that the meter watched.")] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="UUID", help="The metered device, if the run used several.")
    ] = None,
    time_column: Annotated[str | None, typer.Option("--time-column", metavar="NAME", help="Column of times.")] = None,
    power_column: Annotated[
        str | None, typer.Option("--power-column", metavar="NAME", help="Column of powers.")
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option("--timezone", metavar="NAME", help="Zone of times without an offset: Europe/Paris, UTC."),
    ] = None,
    unit: Annotated[str | None, typer.Option("--unit", metavar=_or(PowerUnit), help="Unit of the powers [W].")] = None,
    fit: Annotated[
        str | None, typer.Option("--fit", metavar=_or(FittedPart), help="What to fit [gain_and_offset].")
    ] = None,
    clock: Annotated[
        str | None,
        typer.Option("--clock", metavar=_or(ClockSource), help="correlation if the meter's clock is off [timestamps]."),
    ] = None,
    search_s: Annotated[
        float | None, typer.Option("--search-s", metavar="SECONDS", help="Most that the clocks differ [60].")
    ] = None,
    meter_accuracy: Annotated[
        float | None,
        typer.Option("--meter-accuracy", metavar="SHARE", help="Error of the meter, relative to its reading [0.01]."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="TEXT", help="Name of the meter, for the entry.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the entry here as well.")
    ] = None,
) -> None:
    """Fit gain and offset of a GPU's power readings to an external meter's log of the same time.

    The meter has to measure the device alone, at idle and busy times. Prints the fit and the entry for
    energy.calibration of a campaign; lemctl results --calibration applies it to runs that were measured before.

    \b
    lemctl calibrate meter.csv --run run_0199… --timezone Europe/Paris -o calibration.yaml
    lemctl calibrate meter.csv --run run_0199… --clock correlation --source "LMG671 no. 4711"
    lemctl calibrate meter.csv --run run_0199… --time-column Time --power-column "P (mW)" --unit mW
    """
    if run is None:
        raise UsageError("name the run that the meter watched: `lemctl calibrate FILE --run ID`.")
    given = {
        "device": device,
        "time_column": time_column,
        "power_column": power_column,
        "timezone": timezone,
        "unit": unit,
        "fit": fit,
        "clock": clock,
        "search_s": search_s,
        "meter_accuracy": meter_accuracy,
        "source": source,
    }
    options = model_or_problems(MeterLogOptions, {name: value for name, value in given.items() if value is not None})
    session = session_of(context)
    found = session.client.calibrate(run, _read(log), options)
    entry = as_block({"energy": {"calibration": [found.calibration.model_dump(mode="json")]}})
    if output is not None:
        comments = "".join(f"# {clean(line)}\n" for line in _lines(found))
        output.write_text(f"{comments}{entry}\n", encoding="utf-8")
    if session.as_json:
        session.print_json(found)
        return
    session.print(clean("\n".join([*_lines(found), "", entry])))
    if output is not None:
        session.note(f"Apply it to earlier runs: lemctl results CAMPAIGN --calibration {output}")


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_METER_LOG_BYTES:
            raise FileError((f"{path} is larger than {MAX_METER_LOG_BYTES >> 20} MiB; cut it to the time of the run.",))
        return path.read_bytes()
    except OSError as error:
        raise FileError((f"{path} can't be read: {error.strerror}.",)) from error


def _lines(fit: CalibrationFit) -> list[str]:
    low, high = fit.gain_interval, fit.offset_interval_w
    way = "time stamps" if fit.clock == "timestamps" else "correlation"
    return [
        f"{fit.device} ({fit.device_name}), {fit.run_id}: reading = {fit.gain:.4f} × power {fit.offset_w:+.2f} W",
        f"gain {low.low:.4f} to {low.high:.4f}, offset {high.low:.2f} to {high.high:.2f} W (95 %), fitted: {fit.fit}",
        f"{fit.pairs} pairs of {number(fit.pair_s)} s from {number(fit.low_w)} to {number(fit.high_w)} W; residual "
        f"{number(fit.residual_w)} W, off the line by up to {number(fit.misfit_w)} W",
        f"meter's times {fit.clock_offset_s:+.3f} s ± {fit.clock_uncertainty_s:.3f} s, by {way}; the log covers "
        f"{fit.covered:.0%} of the readings, {fit.rows} rows, {fit.empty_rows} empty (sha256 {fit.log_sha256[:16]})",
    ]
