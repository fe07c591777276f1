"""Aggregates raw evidence into results.

`result` is a pure function of `inputs`; the folders `work`, `latency`, `energy`, `findings` and `checks` are its parts.
`service`, `campaigns`, `process_pool` and `stored_evidence` connect it to the database and to HTTP.
"""
