"""The rules that raise findings. A result lists its findings in the order of these modules and of the rules in them."""

from lem_server.aggregation.findings import evidence, energy, devices, work, cycles  # noqa: F401, I001 - they register rules
from lem_server.aggregation.findings.rule import RULES as RULES, RunFacts as RunFacts
