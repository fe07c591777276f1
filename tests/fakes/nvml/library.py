"""Builds the simulated NVML with the system's compiler, and writes the state file that it answers from.

A line of the state file describes one item; addresses are GPUs (`0`) or MIG instances of them (`0.1`):

    driver 580.65.06                            or: driver 580.65.06 cuda 13000
    device 0 uuid GPU-... name "NVIDIA H100" pci 00000000:1B:00.0 memory_total 85899345920 memory_used 524288000
    device 1 uuid GPU-... name "NVIDIA H100" mig yes memory_total ...
    device 1.0 uuid MIG-... name "NVIDIA H100 MIG 1g.10gb" gi 7 ci 0 memory_total ...
    process 0 pid 4711 memory 1073741824        in memory_used while process 4711 lives
    process 0 pid 4711 memory ... lingers_ms 500  and for 500 ms after its end
    process 0 pid 4711 memory ... bound no      permanent: a pid of another namespace
    process 0 pid 4711 memory ... reported no   NVML lists the process and has no figure for it
    process 0 pid 4711 memory ... kind graphics listed as graphics (or mps), not as compute
    process 0 pid 4711 memory ... listed_as 77  under that pid, as of another namespace
    process 0 pid 4711 memory ... sm 35         it uses 35 % of the device, says nvmlDeviceGetProcessUtilization
    process 0 pid self memory 0                 the process that asks
    error nvmlDeviceGetMemoryInfo 15            that symbol (any version of it) returns 15 everywhere
    error nvmlDeviceGetMemoryInfo 15 1          or on device 1 and its instances
    error nvmlDeviceGetMemoryInfo 15 1 call 3   only at the third such call of each process
    error nvmlDeviceGetFieldValues 3 1 field 186    not the call, but the status of that field in it
    error nvmlDeviceGetMemoryInfo 15 1 from_ms 5000 until_ms 5200    only then (a glitch)
    value nvmlDeviceGetTotalEnergyConsumption 18446744073709551615 0 call 20    success with that number
    value nvmlDeviceGetFieldValues 0 0 field 186    also counter, power usage and fields alone
    delay nvmlDeviceGetMemoryInfo 500           that symbol takes half a second

Quantities over time are in ms from the origin; before it they have their first value:

    origin_ns 81234000000000                    on CLOCK_MONOTONIC
    power 0 constant 250                        W; a device without this line has neither power nor counter
    power 0 steps 0:100,5000:300                from 5 s on 300 W
    power 0 trace 0:100,5000:300                linear to that point
    power 0 sawtooth 100 300 2000               from 100 W to 300 W in 2 s, repeatedly
    power 0 burst 100 300 2000 200              300 W in the first 200 ms of every 2 s, else 100 W
    temperature 0 constant 41                   and so sm_clock, memory_clock, gpu_use, memory_use (these two together)
    throttle 0 steps 0:0,5000:4                 the bit mask of reasons
    module_power 0 constant 900                 and so memory_power: power of these scopes (fields 185 and 186)
    violation_power 0 burst 0 1 200 60          share of the time under a policy; also _thermal, _board, _reliability
    sensor 0 gain 0.954 offset_w -5             what readings show of the power, apart from the counter
    sensor 0 average_ms 20 instant no           what nvmlDeviceGetPowerUsage is a mean over; without field 186
    sensor 0 period_ms 100 window_ms 25         a reading of power holds for 100 ms and is the mean of the 25 ms before
    sensor 0 wake_w 30 wake_ms 100              each call about power or energy, by the process that asks, raises both
    counter 0 period_ms 20 quantum_mj 100 base_mj 7     how the energy counter rounds the exact integral
    counter 0 supported no                      there is none
    counter 0 gain 1000                         it counts another unit
    counter 0 stall_ms 5000 resume_ms 9000      it does not move in between
    counter 0 leap_ms 5000 leap_mj 1e12         that is added from then on
    counter 0 reset_ms 5000                     it begins again from zero
    limits 0 enforced_w 300 current_w 300 default_w 350 min_w 100 max_w 400
    limits 0 enforced_w 700 later_ms 5000 later_enforced_w 300    changed from outside
    facts 0 sm_clock_application 1410
    facts 0 vbios 96.00.74.00.01 compute 9.0 ecc yes persistence no sm_clock_max 1980 memory_clock_max 2619
    facts 0 pcie_generation 5 pcie_width 16 nvlinks 18 nvlinks_up 17    facts without a line are not offered
    device 0 uuid ... gone_ms 5000              lost from then on, with its instances; or until back_ms
    process 0 pid 4711 ... from_ms 1000 until_ms 2000

A MIG instance has the quantities of its own address; a real one has none. The file is read again at every call, so a
test changes the machine by replacing it. An invalid line is printed and makes every call fail.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fakes.compiled import compiled


def built(folder: Path) -> Path:
    """Build the library below a folder; return the folder that contains `libnvidia-ml.so.1`."""
    return compiled("libnvidia-ml.so.1", Path(__file__).parent, folder, ("-lm",)).parent


class SimulatedNvml:
    """The NVML of a simulated machine; a new state applies from the next call of any process that uses it."""

    def __init__(self, library: Path, state: Path) -> None:
        self._library = library
        self._state = state
        self.write()

    def write(self, *lines: str) -> None:
        """Replace the state atomically: a reader sees the old one or the new one."""
        draft = self._state.with_suffix(".draft")
        draft.write_text("\n".join(("driver 580.65.06", *lines, "")))
        draft.replace(self._state)

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment for a process that loads this NVML instead of the machine's."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
        return {
            **inherited,
            "LD_LIBRARY_PATH": str(self._library),
            "LEM_FAKE_NVML": str(self._state),
            **(more or {}),
        }

    def python(self, script: str, more: Mapping[str, str] | None = None) -> str:
        """Run Python with this NVML and return its output; a failure fails the test."""
        environment = self.environment(more)
        # Which libraries are found, and what others see of its environment, is decided when a process begins.
        if more and not {"LD_LIBRARY_PATH", "LEM_ATTEMPT"}.isdisjoint(more):
            ran = subprocess.run(
                [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
            )
            assert ran.returncode == 0, ran.stderr
            return ran.stdout
        parent = _parent(self._library)
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(json.dumps({"script": script, "environment": environment}) + "\n")
        parent.stdin.flush()
        code, output, errors = json.loads(parent.stdout.readline())
        assert code == 0, errors
        assert isinstance(output, str)
        return output


@functools.cache
def _parent(library: Path) -> subprocess.Popen[str]:
    """See `programs.py`; it ends with the process that runs the tests."""
    # The loader looks for libraries in the folders that were in force when a process began.
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
    started = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("programs.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(started.communicate)
    return started
