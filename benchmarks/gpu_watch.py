"""Looks at a GPU beside LEM: through nvidia-smi, and through NVML as often as it answers."""

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
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pynvml

SMI_FIELDS = ("power.draw.instant", "power.draw")
"""The second where the driver does not know the first; it is a mean over a second on most chips since Ampere."""
EVERY_S = 0.001


class Seen(NamedTuple):
    """One reading: seconds on the clock of whoever took it, and W or J."""

    at: float
    value: float


def smi(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What nvidia-smi says."""
    return subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, check=False)


def power_field() -> str | None:
    """The first of `SMI_FIELDS` that this driver's nvidia-smi knows."""
    for field in SMI_FIELDS:
        if smi(f"--query-gpu={field}", "--format=csv,noheader,nounits").returncode == 0:
            return field
    return None


@contextmanager
def watched_by_smi(uuid: str, field: str, file: Path) -> Iterator[Callable[[], list[Seen]]]:
    """Five readings a second; what is yielded gives those so far, in UTC seconds and W.

    They go to a file: a pipe that nobody reads would hold nvidia-smi up after some minutes.
    """
    command = ["nvidia-smi", f"--query-gpu=timestamp,{field}", f"--id={uuid}", "--format=csv,noheader,nounits"]
    with file.open("wb") as output:
        process = subprocess.Popen([*command, "-lms", "200"], stdout=output, env={**os.environ, "TZ": "UTC"})
    try:
        yield lambda: smi_readings(file.read_text())
    finally:
        process.terminate()
        process.wait()


def smi_readings(text: str) -> list[Seen]:
    """From lines such as `2026/11/24 18:21:35.123, 250.14`; a line that is not whole, or has no number, is left out."""
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        try:
            stamp, watts = row
            at = datetime.strptime(stamp, "%Y/%m/%d %H:%M:%S.%f").replace(tzinfo=UTC)
            found.append(Seen(at.timestamp(), float(watts)))
        except ValueError:
            continue
    return found


class Polled:
    """The energy counter and instant power of one GPU, read as often as NVML answers, on CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.energy_j: list[Seen] = []
        self.power_w: list[Seen] = []
        self.without: str | None = None
        """Why there is nothing, or no more."""

    @contextmanager
    def of(self, uuid: str) -> Iterator[None]:
        """Poll in a thread for as long as the block lasts."""
        over = threading.Event()
        thread = threading.Thread(target=self._poll, args=(uuid, over))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _poll(self, uuid: str, over: threading.Event) -> None:
        try:
            pynvml.nvmlInit()
            try:
                handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                while not over.wait(EVERY_S):
                    self._look(handle)
            finally:
                pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            self.without = str(error)

    def _look(self, handle: object) -> None:
        energy_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        now = time.monotonic()
        [field] = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])
        self.energy_j.append(Seen(now, energy_mj / 1e3))
        if field.nvmlReturn == pynvml.NVML_SUCCESS:
            self.power_w.append(Seen(now, field.value.uiVal / 1e3))


def within(readings: Sequence[Seen], begin: float, end: float) -> list[Seen]:
    """Those between two instants of their clock."""
    return [one for one in readings if begin <= one.at <= end]


def update_period_ms(readings: Sequence[Seen]) -> float | None:
    """Median time between two changes of the value; None with fewer than ten.

    An update that leaves the value as it was is not seen, so that this is an upper end where power is very level.
    """
    changes = [after.at for before, after in pairwise(readings) if after.value != before.value]
    if len(changes) < 10:
        return None
    return statistics.median(after - before for before, after in pairwise(changes)) * 1e3


def mean(readings: Sequence[Seen]) -> float | None:
    """Of the values; None of none."""
    return statistics.fmean(one.value for one in readings) if readings else None
