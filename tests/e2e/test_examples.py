"""The examples that need no GPU and take seconds, as their user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(house, name: str) -> tuple[int, dict[str, list[str]], str]:  # type: ignore[no-untyped-def]
    """Exit code, and the reasons of each experiment's runs without a result, by its name."""
    done = house.lemctl("run", EXAMPLES / name, "--json")
    last = json.loads(done.stdout.splitlines()[-1])
    reasons = {
        one["display_name"]: [outcome["reason"] for outcome in one["outcomes"] if outcome["reason"]]
        for one in last["experiments"]
    }
    return done.returncode, reasons, done.stderr


def test_one_of_each_kind(house) -> None:  # type: ignore[no-untyped-def]
    for backend in ("simulated", "pytorch"):
        house.start_worker(backend, name=backend)
    assert run(house, "inheritance.yaml")[:2] == (0, {"inheritance": []})
    assert run(house, "refused.yaml")[:2] == (0, {"batch_size=1": [], "batch_size=2": []})
    code, reasons, errors = run(house, "two-backends.yaml")
    assert (code, len(reasons)) == (0, 3), errors
    code, reasons, _ = run(house, "failure-drill.yaml")
    assert code == 1
    assert reasons == {"dies while measuring": ["inference"], "lies about its batch size": ["not_as_requested"]}
    with house.client() as client:
        (campaign,) = client.campaigns(name="inheritance")
        (one,) = client.runs(campaign_id=campaign.id)
    shown = house.lemctl("show", one.id).stdout
    assert "simulated.power_w" in shown
    assert "inheritance.yaml:9" in shown
    assert "base-simulated.yaml:4" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "experiments"),
    [
        ("presets.yaml", 1),
        ("zip.yaml", 2),
        ("include-exclude.yaml", 4),
        ("experiments.yaml", 4),
        ("open-traffic.yaml", 2),
    ],
)
def test_the_others(house, name: str, experiments: int) -> None:  # type: ignore[no-untyped-def]
    house.start_worker("pytorch" if name == "experiments.yaml" else "simulated")
    code, reasons, errors = run(house, name)
    assert (code, len(reasons)) == (0, experiments), errors
