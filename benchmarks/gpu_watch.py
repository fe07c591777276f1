"""Observes a GPU independently of LEM: through nvidia-smi, and through NVML as often as it answers."""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pynvml

SMI_FIELDS = ("power.draw.instant", "power.draw")
"""The second is for drivers without the first; it is a mean over one second on most chips since Ampere."""
POLL_S = 0.001


class EnergyEstimate(NamedTuple):
    """One reading: seconds on the reader's clock, and W or J."""

    at: float
    value: float


def smi(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run nvidia-smi and capture its output."""
    return subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, check=False)


def power_field() -> str | None:
    """Return the first of `SMI_FIELDS` that this driver's nvidia-smi offers."""
    for field in SMI_FIELDS:
        if smi(f"--query-gpu={field}", "--format=csv,noheader,nounits").returncode == 0:
            return field
    return None


@contextmanager
def poll_with_smi(uuid: str, field: str, file: Path) -> Iterator[Callable[[], list[EnergyEstimate]]]:
    """Take five readings a second; yield a function that returns those so far, in UTC seconds and W.

    The output goes to a file, because an unread pipe would block nvidia-smi after some minutes.
    """
    command = ["nvidia-smi", f"--query-gpu=timestamp,{field}", f"--id={uuid}", "--format=csv,noheader,nounits"]
    with file.open("wb") as output:
        process = subprocess.Popen([*command, "-lms", "200"], stdout=output, env={**os.environ, "TZ": "UTC"})
    try:
        yield lambda: smi_readings(file.read_text())
    finally:
        process.terminate()
        process.wait()


def smi_readings(text: str) -> list[EnergyEstimate]:
    """Parse lines such as `2026/11/24 18:21:35.123, 250.14`; skip incomplete ones and those without a number."""
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        try:
            stamp, watts = row
            at = datetime.strptime(stamp, "%Y/%m/%d %H:%M:%S.%f").replace(tzinfo=UTC)
            found.append(EnergyEstimate(at.timestamp(), float(watts)))
        except ValueError:
            continue
    return found


class NvmlPoll:
    """Energy counter, instant and average power of one GPU, read as often as NVML answers, on CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.energy_j: list[EnergyEstimate] = []
        self.power_w: list[EnergyEstimate] = []
        self.average_w: list[EnergyEstimate] = []
        self.error: str | None = None
        """Why polling could not start, or ended early."""

    @contextmanager
    def of(self, uuid: str) -> Iterator[None]:
        """Poll in a thread for the duration of the block."""
        ended = threading.Event()
        thread = threading.Thread(target=self._poll, args=(uuid, ended))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _poll(self, uuid: str, ended: threading.Event) -> None:
        try:
            pynvml.nvmlInit()
            try:
                handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                while not ended.wait(POLL_S):
                    self._read(handle)
            finally:
                pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            self.error = str(error)

    def _read(self, handle: object) -> None:
        readings = (
            (self.energy_j, partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)),
            (self.power_w, partial(_instant_mw, handle)),
            (self.average_w, partial(pynvml.nvmlDeviceGetPowerUsage, handle)),
        )
        for series, read in readings:
            at = time.monotonic()
            try:
                value = read()
            except pynvml.NVMLError as error:
                if error.value != pynvml.NVML_ERROR_NOT_SUPPORTED:
                    raise
                continue
            series.append(EnergyEstimate(at, value / 1e3))


def _instant_mw(handle: object) -> int:
    [field] = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])
    if field.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(field.nvmlReturn)
    return int(field.value.uiVal)


def within(readings: Sequence[EnergyEstimate], begin: float, end: float) -> list[EnergyEstimate]:
    """Return the readings between two instants of their clock."""
    return [one for one in readings if begin <= one.at <= end]


def update_period_ms(readings: Sequence[EnergyEstimate]) -> float | None:
    """Median time between two changes of the value; None with fewer than ten.

    An update that does not change the value is invisible, so this is an upper bound where power is nearly constant.
    """
    changes = [after.at for before, after in pairwise(readings) if after.value != before.value]
    if len(changes) < 10:
        return None
    return statistics.median(after - before for before, after in pairwise(changes)) * 1e3


def mean(readings: Sequence[EnergyEstimate]) -> float | None:
    """Mean of the values; None without readings."""
    return statistics.fmean(one.value for one in readings) if readings else None
