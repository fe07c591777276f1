"""Authentication and scopes: all requests but those of a short public list need a token, all API routes a scope.

The middleware runs before routing, so that a path without a route is closed too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from lem_domain.errors import ProblemCode
from lem_domain.wire.access import Scope
from lem_server.access.service import Principal, authenticate
from lem_server.context import AppContext
from lem_server.http.problems import ProblemError, problem_responses

PUBLIC_PATHS = frozenset({"/", "/livez", "/readyz", "/version", "/docs", "/openapi.json"})
PUBLIC_PREFIXES = ("/docs/assets/",)

SCOPE_KEY = "x-lem-scope"


def declares(
    scope: Scope, *problems: ProblemCode, answers: Mapping[int | str, Any] | None = None, **openapi: Any
) -> dict[str, Any]:
    """Return what a route declares: its scope, which `check_scope` enforces, its problems and its other answers."""
    return {
        "openapi_extra": {SCOPE_KEY: scope.value, **openapi},
        "responses": {**(answers or {}), **problem_responses(*problems)},
    }


class Authentication:
    """Middleware that refuses requests without a valid token, except to public paths."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI)."""
        if scope["type"] != "http" or _is_public(scope["path"]):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        context: AppContext = request.app.state.context
        scope["lem.principal"] = await authenticate(context.engine, _bearer(request))
        await self._app(scope, receive, send)


_scheme = HTTPBearer(auto_error=False, description="A token of this server, for example the one in `owner.token`.")


async def check_scope(
    request: Request, _credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_scheme)]
) -> None:
    """Dependency of every API route: refuse a token without its scope. A route that declares none is refused too."""
    route = request.scope.get("route")
    declared = (getattr(route, "openapi_extra", None) or {}).get(SCOPE_KEY)
    principal = current_principal(request)
    if declared is None or Scope(declared) not in principal.scopes:
        raise ProblemError(
            ProblemCode.FORBIDDEN,
            f"the token {principal.name!r} lacks the scope {declared or 'admin'}; use one that has it.",
        )


def current_principal(request: Request) -> Principal:
    """Return the owner of the request's token.

    Raises:
        ProblemError: `unauthenticated` (on a public path, which the middleware does not authenticate).
    """
    principal = request.scope.get("lem.principal")
    if not isinstance(principal, Principal):
        raise ProblemError(ProblemCode.UNAUTHENTICATED, "send `Authorization: Bearer <token>`.")
    return principal


CurrentPrincipal = Annotated[Principal, Depends(current_principal)]


def _is_public(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIXES)


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise ProblemError(
            ProblemCode.UNAUTHENTICATED,
            "send `Authorization: Bearer <token>`; the owner's token is in the server's data folder (owner.token).",
        )
    return token.strip()
