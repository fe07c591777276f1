"""The heartbeat process, which renews the worker's leases however busy its other processes are."""
