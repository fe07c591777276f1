"""The command `lemctl`: one module per group of commands."""
