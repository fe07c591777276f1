"""The thin client: a public Python client and the `lemctl` command line on top of it."""
