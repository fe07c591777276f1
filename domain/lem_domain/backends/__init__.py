"""The backends: one module per engine with its configuration section, rules and `BackendSpec`."""
