"""Errors of the client. The text of each says what happened, then what to do.

LemError                   (lem_domain.errors)
├── ServerUnreachable      no connection to the server
├── NoAnswerInTime         connected, but no answer within the read timeout
├── TransferInterrupted    a bundle or table ended early
├── CredentialsError       server address or token unusable
├── FileError              campaign file or bundle unusable
└── AnswerError            the server answered with a problem (RFC 9457)
    ├── Unauthenticated    401
    ├── Forbidden          403
    ├── NotFound           404
    ├── Conflict           409
    ├── InvalidRequest     any other 4xx except 429
    └── ServerFailed       429, 5xx, or an answer that is not LEM's
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError

from lem_domain.errors import FieldProblem, LemError, Problem, ProblemCode


class ServerUnreachable(LemError):
    """No server answers at the address."""

    def __init__(self, url: str, detail: str = "") -> None:
        super().__init__(f"no LEM server answers at {url}; start one with `lemctl up` or set LEM_SERVER.")
        self.url = url
        self.detail = detail
        """The network error, for `--debug`."""


class NoAnswerInTime(LemError):
    """The server accepted the request and did not answer within the read timeout."""

    def __init__(self, url: str, seconds: float) -> None:
        super().__init__(f"the server at {url} did not answer within {seconds:g} s; read its log, then try again.")


class TransferInterrupted(LemError):
    """The server ended a transfer early."""

    def __init__(self) -> None:
        super().__init__(
            "the transfer ended before it was complete: the campaign changed meanwhile, evidence is missing or "
            "damaged, or the connection broke; export it again (the server's log says more)."
        )


class CredentialsError(LemError):
    """The server address is invalid, or the token can't be read."""


class FileError(LemError):
    """A campaign file, a file that it names, or a bundle is unusable; `problems` holds one sentence each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems[0])
        self.problems = problems


class AnswerError(LemError):
    """The server refused a request or failed to execute it."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.status = status
        self.problem = problem

    @property
    def code(self) -> ProblemCode:
        """The stable code to branch on."""
        return self.problem.code

    @property
    def field_problems(self) -> tuple[FieldProblem, ...]:
        """Every problem of the input, with its JSON pointer."""
        return self.problem.errors


class Unauthenticated(AnswerError):
    """The token is missing or not accepted."""


class Forbidden(AnswerError):
    """The token's scopes do not allow this."""


class NotFound(AnswerError):
    """The server has no such resource."""


class InvalidRequest(AnswerError):
    """The request's content is invalid; `field_problems` lists every problem."""


class Conflict(AnswerError):
    """The resource's state does not allow this now."""


class ServerFailed(AnswerError):
    """The server failed, is overloaded, or sent an answer that this client does not understand."""


_BY_STATUS: Final[Mapping[int, type[AnswerError]]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
}


def answer_error(status: int, body: bytes, *, url: str) -> AnswerError:
    """The error for an answer without success."""
    refused = 400 <= status < 500 and status != 429
    kind = _BY_STATUS.get(status) or (InvalidRequest if refused else ServerFailed)
    try:
        return kind(status, Problem.model_validate_json(body))
    except ValidationError:
        what = f"{url} answered {status}, but not as a LEM server does"
        return ServerFailed(status, unexpected_answer(status, what))


def unexpected_answer(status: int, what: str) -> Problem:
    """The problem for an answer that no LEM server of this version sends."""
    return Problem(
        type="about:blank",
        title="Unexpected answer",
        status=status,
        code=ProblemCode.INTERNAL,
        detail=f"{what}; check LEM_SERVER and that client and server have the same version.",
    )
