"""The sampler process: it records power and device state at a fixed cadence while an attempt lasts."""
