"""`python -m lem_server.aggregation`: one aggregation, started by the server for itself."""

from lem_server.aggregation.priority import let_others_go_first

let_others_go_first()

from lem_server.aggregation.elsewhere import answer  # noqa: E402 - its import is the first that others go before

answer()
