"""The rules that raise findings."""
