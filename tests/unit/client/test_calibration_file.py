"""A file of calibrations is read as a campaign has them, and every problem names its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lem_client.errors import FileError
from lem_client.files.calibration_file import read_calibration

ENTRY = """
energy:
  calibration:
    - device: GPU-0
      gain: 0.95
      source: a meter
"""


def test_its_entries_are_those_of_a_campaign(tmp_path: Path) -> None:
    file = tmp_path / "calibration.yaml"
    file.write_text(ENTRY)
    [entry] = read_calibration(file).calibration or ()
    assert (entry.device, entry.gain, entry.source) == ("GPU-0", 0.95, "a meter")
    assert read_calibration(Path("none")).calibration == ()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (ENTRY.replace("0.95", "5"), "5: energy.calibration.0.gain: "),
        (ENTRY.replace("gain", "gian"), "energy.calibration.0.gian: unknown key 'gian'; did you mean 'gain'?"),
        (ENTRY + ENTRY.partition("calibration:")[2], "energy.calibration: calibration names GPU-0 twice"),
        ("energy: {}", "there is no list energy.calibration"),
        ("energy: {calibration: 3}", "there is no list energy.calibration"),
    ],
)
def test_what_is_wrong_is_one_sentence_each(tmp_path: Path, text: str, place: str) -> None:
    file = tmp_path / "calibration.yaml"
    file.write_text(text)
    with pytest.raises(FileError) as caught:
        read_calibration(file)
    assert all(str(file) in line for line in caught.value.problems)
    assert any(place in line for line in caught.value.problems), caught.value.problems
