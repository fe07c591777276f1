"""Reads what the sampler recorded, and computes the energy of the window from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lem_domain.results.run import WindowResult
from lem_server.aggregation.energy.power_traces import DeviceSamples, read_devices, read_host_traces
from lem_server.aggregation.energy.prefill_probe import read_probe
from lem_server.aggregation.energy.sampler_record import SamplerRecord, read_sampler
from lem_server.aggregation.energy.sources import read_sources
from lem_server.aggregation.energy.totals import EnergyAccount, energy_account
from lem_server.aggregation.evidence_reader import EvidenceReader
from lem_server.aggregation.inputs import AggregationInput
from lem_server.aggregation.work.requests import RankRequests


class MeasuredEnergy(NamedTuple):
    """The energy of an attempt, with the record of the sampler and the samples of the devices by UUID."""

    account: EnergyAccount
    record: SamplerRecord
    samples: dict[str, DeviceSamples]


def read_energy(
    reader: EvidenceReader, inputs: AggregationInput, ranks: Sequence[RankRequests], window: WindowResult
) -> MeasuredEnergy:
    """Read the power of devices and host, and compute the energy of the window.

    Raises:
        EvidenceInvalid, EvidenceCorrupt, EvidenceMissing: see `read_devices`, `read_host_traces`.
    """
    samples = read_devices(reader, inputs.devices)
    record = read_sampler(reader, inputs.summaries)
    account = energy_account(
        inputs.config,
        inputs.devices,
        {uuid: found.trace for uuid, found in samples.items()},
        read_host_traces(reader),
        read_sources(inputs.summaries),
        record,
        ranks,
        window,
        read_probe(inputs.ranks, inputs.summaries) if inputs.config.prefill_probe else None,
        inputs.method,
        inputs.calibration,
    )
    return MeasuredEnergy(account, record, samples)
