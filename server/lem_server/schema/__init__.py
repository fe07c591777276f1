"""The configuration keys, backends and presets of this version."""
