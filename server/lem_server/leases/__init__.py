"""Leases: claims, heartbeats, the fence and expiry."""
