"""HTTP routes of decisions."""

from __future__ import annotations

from fastapi import APIRouter

from lem_domain.errors import ProblemCode
from lem_domain.wire.access import Scope
from lem_domain.wire.decisions import CompareRequest, Comparison, Gate, GateRequest
from lem_server.access.guard import declares
from lem_server.context import Context
from lem_server.decisions import service
from lem_server.http.method_query import StoredMethod

router = APIRouter(prefix="/api/v1", tags=["results"])


@router.post(
    "/comparisons", **declares(Scope.READ, ProblemCode.NOT_FOUND, ProblemCode.CONFLICT, ProblemCode.VALIDATION)
)
async def compare_experiments(context: Context, request: CompareRequest, method: StoredMethod = None) -> Comparison:
    """Compare experiments, or the experiments of two campaigns, by their stored results; nothing is stored.

    The answer has what differs, findings, and for each metric the estimate with its intervals and a word for what is
    shown. Aggregate the campaigns first: runs without a result are in no figure.
    """
    return await service.compare(context.engine, context.aggregations.pool, request, method)


@router.post("/gates", **declares(Scope.READ, ProblemCode.NOT_FOUND, ProblemCode.CONFLICT, ProblemCode.VALIDATION))
async def hold_against_limits(context: Context, request: GateRequest, method: StoredMethod = None) -> Gate:
    """Decide whether a candidate is within the regressions that are allowed, beyond one, or undecided.

    Nothing is stored. A figure that is missing never passes.
    """
    return await service.gate(context.engine, context.aggregations.pool, request, method)
