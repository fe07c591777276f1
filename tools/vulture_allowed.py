"""Names that the product defines and never reads itself, each with its reader. Vulture counts them as used.

Add a name only if something outside of the product reads it. Delete what only tests read.
"""

# ruff: noqa: B018, F821
# mypy: ignore-errors

# The public client library: for users' own programs.
follow_run

# Loaded by name: a backend's class from its spec, `SPEC` of an energy source from its module.
PyTorchBackend
SimulatedBackend
TensorrtBackend
VllmBackend

# Keys of an engine's section: passed on as one mapping with model_dump().
attention_backend
enable_padding
enable_prefix_caching
fullgraph
free_gpu_memory_fraction
host_cache_size
kv_cache_dtype
max_beam_width
max_num_tokens
num_speculative_tokens
prompt_lookup_max
prompt_lookup_min

# Bounds of a configuration key: passed on to pydantic as one mapping.
ge
gt
le
lt
min_length
max_length

# Text of the list of backends in the JSON Schema.
__doc__

# Facts of a backend that the tests compare with files of the repository.
image  # its Dockerfile

# Columns of evidence rows: written with _asdict().
gpu_percent
memory_clock_mhz
memory_percent
memory_used_bytes
sm_clock_mhz
throttle_reasons
power_violation_ns
thermal_violation_ns
board_violation_ns
reliability_violation_ns

# The rule of ending cycles that benchmarks/decisions.py proves.
half_width
look
precise

# Texts of a metric that tools/reference prints.
better
definition

# Fields of a result that the table of metrics reads by their path.
efficiency
energy_delay_product_js
energy_per_output_token_j
energy_per_output_token_without_constant_j
energy_per_prompt_token_j
energy_per_request_j
net_energy_per_output_token_j
output_tokens_per_j
queue_ms
request_rate_per_s
total_rate_tok_s

# Fields of results and of the API that its clients read.
completed
current_attempts
design
excluded_cycles
expires_at
initialised
interrupted
interval_method
last_used_at
memory_utilisation_mean_percent
p_adjusted
peak_flops_per_s
publication
questionable_cycles
queued
received_at
registered_at
revoked_at
schema_version
statistical
text_sha256
updated_at
workers_online

# Values of the wire format that no part of the product compares with.
DECODE
DRAINING
OFFLINE
PREFILL
RECOVERED

# Parameters of statements: passed with _asdict().
calibrated

# Tables and columns: read by SQLAlchemy's metadata, and by SQL as text.
api_tokens
campaign_devices
device_details
device_leases
device_like
device_uses
device_uuids
idempotency_keys
leases
run_edges
t_max_ns
t_min_ns
worker_boots

# Fields of tuples that are compared as a whole.
dangling
padded

# Hooks and attributes that a library reads.
branch_labels  # Alembic
depends_on  # Alembic
down_revision  # Alembic
downgrade  # Alembic
assistant_confidence_threshold  # transformers' generation config
cache_ok  # SQLAlchemy's custom types
get_col_spec  # SQLAlchemy's custom types
model_max_length  # transformers' tokenizers
post_processor  # tokenizers
pre_tokenizer  # tokenizers
recompile_limit  # torch._dynamo.config
ge  # the bounds of a key, which pydantic's Field takes
gt  # the same
le  # the same
lt  # the same
min_length  # the same
max_length  # the same

# Members of enumerations that requests name by their values.
EXPERIMENTS
JSONL
RUNS
