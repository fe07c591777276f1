"""What the worker asks NVIDIA's driver: which GPUs are its own, and who holds their memory."""
