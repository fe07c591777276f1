"""The lease protocol: claims, heartbeats, the fence, how an attempt starts and ends, and expiry."""
