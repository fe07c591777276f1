"""Results as CSV for programs: one line per experiment and metric, unscaled."""

from __future__ import annotations

import csv
import io

from lem_client.render.terminal import clean
from lem_domain.spreadsheets import guarded
from lem_domain.wire.campaigns import CampaignResults

_HEADINGS = (
    "experiment_id",
    "experiment",
    "verdict",
    "energy_method",
    "energy_includes",
    "method",
    "metric",
    "unit",
    "n",
    "mean",
    "sd",
    "cv",
    "reason",
)


def render(results: CampaignResults) -> str:
    """Return the lines. A missing figure is an empty field with its reason in the last column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_HEADINGS)
    for one in results.experiments:
        head = (one.experiment_id, one.display_name, one.verdict or "", one.energy_method or "")
        includes = "+".join(one.energy_includes)
        for metric in one.metrics:
            row = (
                *head,
                includes,
                one.method or "",
                metric.metric,
                metric.unit,
                len(metric.values),
                metric.mean,
                metric.sd,
                metric.cv,
                metric.reason or "",
            )
            writer.writerow(guarded(cell) if isinstance(cell, str) else cell for cell in row)
    return clean(out.getvalue())
