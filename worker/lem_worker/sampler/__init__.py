"""The sampler process: it records power and device state at a fixed cadence during an attempt."""
