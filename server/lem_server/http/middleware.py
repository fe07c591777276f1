"""ASGI middleware: request ids, security headers, trusted hosts and limits of the body."""

from __future__ import annotations

import re
from collections.abc import Sequence
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lem_domain.bundle import MAX_BUNDLE_BYTES
from lem_domain.errors import ProblemCode
from lem_domain.evidence.streams import MAX_CHUNK_BYTES
from lem_domain.wire.calibration import MAX_METER_LOG_BYTES
from lem_domain.wire.datasets import MAX_DATASET_BYTES
from lem_server.http.problems import ProblemError, problem_of, problem_response

JSON_LIMIT_BYTES = 2**20
_LARGER = (
    (re.compile(r"^/api/v1/attempts/[^/]+/processes/[^/]+/streams/[^/]+/chunks/[0-9]+$"), MAX_CHUNK_BYTES),
    (re.compile(r"^/api/v1/campaigns:import$"), MAX_BUNDLE_BYTES),
    (re.compile(r"^/api/v1/runs/[^/]+:calibrate$"), MAX_METER_LOG_BYTES),
    (re.compile(r"^/api/v1/datasets/[0-9a-f]+$"), MAX_DATASET_BYTES),
)

SECURITY_HEADERS = {
    # Swagger UI sets styles and data: icons from its script; nothing is loaded from other origins.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Envelope:
    """Adds an id (`Lem-Request-Id`) to every request and the security headers to every answer, also after a failure.

    It is the outermost middleware, so that the others may raise a `ProblemError`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid4().hex
        scope["lem.request_id"] = request_id
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["Lem-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            problem = problem_of(error, request_id)
            if started:
                raise
            await problem_response(problem, request_id)(scope, receive, send_with_headers)


class TrustedHosts:
    """Refuses requests for unknown hosts: a web page could rebind its own name to this server (DNS rebinding)."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = tuple(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI)."""
        if scope["type"] == "http" and not self._trusts(host_of(Headers(scope=scope).get("host", ""))):
            raise ProblemError(
                ProblemCode.BAD_REQUEST, "the Host header is not a trusted host; add it to LEM_TRUSTED_HOSTS."
            )
        await self._app(scope, receive, send)

    def _trusts(self, host: str) -> bool:
        return any(
            known in ("*", host) or (known.startswith("*.") and host.endswith(known[1:])) for known in self._hosts
        )


def host_of(header: str) -> str:
    """Return a Host header without its port; an IPv6 address keeps its brackets."""
    return re.sub(r":[0-9]*$", "", header).lower()


class BodyLimit:
    """Refuses a body above the limit of its path: at once by its declared length, otherwise while it is received."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = body_limit(scope["path"])
        declared = Headers(scope=scope).get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()) or int(declared) > limit:
            raise ProblemError(
                ProblemCode.PAYLOAD_TOO_LARGE, f"the body is larger than the {limit} bytes that this path accepts."
            )
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413)
            return message

        await self._app(scope, limited, send)


def body_limit(path: str) -> int:
    """Return the largest body that a path accepts, in bytes."""
    return next((limit for pattern, limit in _LARGER if pattern.match(path)), JSON_LIMIT_BYTES)
