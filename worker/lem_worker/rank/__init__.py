"""A rank process: it loads the model, warms up and measures one share of the requests."""
