"""The rank process: loads the model, warms up and measures its share of the requests."""
