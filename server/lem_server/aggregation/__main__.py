"""`python -m lem_server.aggregation`: one aggregation, started by the server for itself."""

from lem_server.aggregation.subprocesses import answer

answer()
