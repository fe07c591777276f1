"""Raw evidence: its streams, columns and codec."""
