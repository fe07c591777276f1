"""The heartbeat process: it renews the leases of the worker, whatever the engine is doing."""
