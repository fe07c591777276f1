"""Every example that needs no GPU and no engine beside PyTorch, as its user runs it: the file as it stands.

They run some at a time on one server with a worker for each backend, like after `lemctl up`, and two more, the first of
them in the default suite. Those of real models take minutes. A file that is in none of the tables must say why.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from factories.server_process import folder_for_everybody

EXAMPLES = Path(__file__).parents[2] / "examples"
AT_ONCE = 4
"""They wait more than they compute."""


class Story(NamedTuple):
    """What comes of an example: by each experiment's name the reasons of its runs that have no result."""

    experiments: dict[str, list[str]]
    code: int = 0
    shortened: tuple[str, ...] = ()
    """Values that are set for the test, because the file takes many minutes as it stands."""


QUICK: Final = {
    "two-backends.yaml": Story(
        {"backend=pytorch, batch_size=1": [], "backend=pytorch, batch_size=4": [], "backend=simulated": []}
    ),
    "simulated.yaml": Story({"batch_size=1": [], "batch_size=8": []}),
    "failure-drill.yaml": Story(
        {"dies while measuring": ["inference"], "lies about its batch size": ["not_as_requested"]}, code=1
    ),
    "inheritance.yaml": Story({"inheritance": []}),
}
MORE: Final = {
    "include-exclude.yaml": Story(
        {
            "batch_size=1, max_tokens=8": [],
            "batch_size=1, max_tokens=16": [],
            "batch_size=4, max_tokens=8": [],
            "batch_size=2": [],
        }
    ),
    "open-traffic.yaml": Story({"rate_per_s=20": [], "rate_per_s=60": []}),
    "presets.yaml": Story({"presets": []}),
    "refused.yaml": Story({"batch_size=1": [], "batch_size=2": []}),
    "zip.yaml": Story(
        {
            "decode_ms_per_token=1, min_duration_s=1": [],
            "decode_ms_per_token=4, min_duration_s=2": [],
        }
    ),
}
SHORT: Final = (
    "execution.cycles=1",
    "window.min_duration_s=2",
    "baseline.enabled=false",
    "prompts.sample_size=4",
    "output.max_tokens=8",
    "warmup.max_requests=5",
)
SLOW: Final = {
    "decoding.yaml": Story({"greedy": [], "standard": [], "creative": []}, shortened=SHORT),
    "experiments.yaml": Story(
        {
            "float32, batch_size=1": [],
            "float32, batch_size=4": [],
            "random weights, batch_size=1": [],
            "random weights, batch_size=4": [],
        }
    ),
    # The defaults that are replaced here are each set and proven elsewhere, by the tests marked `proves`.
    "minimal.yaml": Story({"minimal": []}, shortened=SHORT),
}
SHORT_QUICKSTART: Final = """
_extends: quickstart.yaml
window: {min_duration_s: 1}
baseline: {min_s: 1, max_s: 1}
warmup: {min_requests: 2, max_requests: 2, window_size: 2}
output: {max_tokens: 8}
execution: {cycles: 1}
"""
"""Its model, two batch sizes and table, with numbers that let a slow machine end in time."""
BY_THE_DEMONSTRATION: Final = {"quickstart.yaml"}
EXCUSED: Final = {
    "base-simulated.yaml": "no campaign of its own: most of the quick ones extend it",
    "three-backends.yaml": "needs vLLM, and TensorRT-LLM with a GPU; tests/e2e/test_three_backends.py runs what it "
    "shows, an engine that is missing, and tests/live_vllm the other two engines",
}


def run(house: Any, name: str, story: Story) -> tuple[Story, dict[str, Any], str]:
    """What came of an example, its results, and what was said on standard error."""
    options = [part for value in story.shortened for part in ("--set", value)]
    done = house.lemctl("run", EXAMPLES / name, "--json", *options, timeout_s=1500)
    results = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"experiments": []}
    experiments = {
        one["display_name"]: [outcome["reason"] for outcome in one["outcomes"] if outcome["reason"]]
        for one in results["experiments"]
    }
    return Story(experiments, done.returncode, story.shortened), results, done.stderr


def mean(results: dict[str, Any], experiment: str, metric: str) -> float:
    """A figure of an experiment over its cycles."""
    [one] = [one for one in results["experiments"] if one["display_name"] == experiment]
    [found] = [summary["mean"] for summary in one["metrics"] if summary["metric"] == metric]
    return float(found)


def test_every_example_is_run_or_says_why_not() -> None:
    files = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".yaml", ".yml", ".toml", ".json"))
    assert sorted([*QUICK, *MORE, *SLOW, *BY_THE_DEMONSTRATION, *EXCUSED]) == files
    assert len(files) >= 12


def results_of(house: Any, stories: dict[str, Story]) -> dict[str, Any]:
    """What came of these examples, which is as their stories have it."""
    for number, backend in enumerate(("pytorch", "simulated", "simulated", "simulated")):
        house.start_worker(backend, name=f"{backend}-{number}")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {name: pool.submit(run, house, name, story) for name, story in stories.items()}
    ended = {name: one.result() for name, one in running.items()}
    came = {name: story for name, (story, _, _) in ended.items()}
    assert came == stories, {name: said for name, (_, _, said) in ended.items()}
    return {name: results for name, (_, results, _) in ended.items()}


@pytest.mark.slow
def test_more_of_them(house: Any) -> None:
    results_of(house, MORE)


@pytest.mark.slow
def test_the_quick_ones(house: Any) -> None:
    known = results_of(house, QUICK)["simulated.yaml"]
    one, eight = (mean(known, f"batch_size={size}", "efficiency.energy_per_output_token_j") for size in (1, 8))
    least = 100 * 0.002 * 31 / 32  # W, s per step, and steps per 32 tokens: the first one comes with the prompt
    assert one > least
    assert least / 8 < eight < one / 2

    assert "J per output token" in house.lemctl("results", "simulated", "--format", "markdown").stdout

    with house.client() as client:
        (campaign,) = client.campaigns(name="inheritance")
        (a_run,) = client.runs(campaign_id=campaign.id)
    shown = house.lemctl("show", a_run.id).stdout
    assert "simulated.power_w" in shown
    assert "inheritance.yaml:9" in shown
    assert "base-simulated.yaml:4" in shown


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.parametrize("name", SLOW)
def test_the_others(house: Any, name: str) -> None:
    house.start_worker("pytorch")
    came, _, said = run(house, name, SLOW[name])
    assert came == SLOW[name], said


@pytest.mark.slow
@pytest.mark.smollm2
def test_the_quickstart_by_the_demonstration(model_cache: Path) -> None:
    """`make demo`: `lemctl up`, then `lemctl run examples/quickstart.yaml`, here with smaller numbers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEM_")}
    with folder_for_everybody() as folder:
        shutil.copy(EXAMPLES / "quickstart.yaml", folder)
        (folder / "short.yaml").write_text(SHORT_QUICKSTART)
        done = subprocess.run(
            [sys.executable, EXAMPLES / "demo.py", "--file", folder / "short.yaml", "--data-dir", folder / "data"],
            env={**kept, "LEM_CACHE_DIR": str(model_cache), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1700,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(re.search(rf"batch_size={size}\W+1\b", done.stdout) for size in (1, 8)), done.stdout
