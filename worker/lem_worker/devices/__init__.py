"""The devices of a worker: NVML, UUIDs, visibility and facts."""
